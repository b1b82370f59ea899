import jax
import pytest

from gr_jax.serving import compile_cache

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def options_as_before():
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_each_kind_of_processor_has_a_folder_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "config.json").touch()
    folders = set()
    for can in ("flags : sse avx", "flags : sse avx avx512f", "Features : neon"):
        monkeypatch.setattr(compile_cache, "CPUINFO", tmp_path / "cpuinfo")
        compile_cache.CPUINFO.write_text(f"processor : 0\nbogomips : 5\n{can}\n")
        folders |= {compile_cache.keep(tmp_path), compile_cache.keep(tmp_path)}
        assert jax.config.jax_compilation_cache_dir == str(compile_cache.keep(tmp_path))
    assert len(folders) == 3 and {folder.parent for folder in folders} == {tmp_path / "compiled"}


def test_nothing_is_kept_where_there_is_no_run_or_no_right_to_write(tmp_path, monkeypatch):
    assert compile_cache.keep(tmp_path) is None
    (tmp_path / "config.json").touch()
    monkeypatch.setattr(compile_cache.os, "access", lambda path, mode: False)
    assert compile_cache.keep(tmp_path) is None
    assert jax.config.jax_compilation_cache_dir is None and list(tmp_path.iterdir()) == [
        tmp_path / "config.json"
    ]
