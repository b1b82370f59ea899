import os
import subprocess
import sys
from pathlib import Path

import jax
import platformdirs
import pytest

from gr_jax.serving import compile_cache

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def options_as_before():
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of programs in a user cache of its own."""
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    return tmp_path / "cache" / "gr_jax" / "compiled"


def test_each_kind_of_processor_has_a_private_folder_of_its_own(cache, tmp_path, monkeypatch):
    folders = set()
    for features in ("flags : sse avx", "flags : sse avx avx512f", "Features : neon"):
        monkeypatch.setattr(compile_cache, "CPUINFO", tmp_path / "cpuinfo")
        compile_cache.CPUINFO.write_text(f"processor : 0\nbogomips : 5\n{features}\n")
        folders |= {compile_cache.keep(), compile_cache.keep()}
        assert jax.config.jax_compilation_cache_dir == str(compile_cache.keep())
    assert len(folders) == 3 and {folder.parent for folder in folders} == {cache}
    assert {folder.stat().st_mode & 0o777 for folder in (cache, *folders)} == {0o700}


@pytest.mark.parametrize("inner", [False, True])
def test_a_folder_that_others_can_write_to_is_not_used(cache, capsys, inner):
    folder = compile_cache.keep()
    jax.config.update("jax_compilation_cache_dir", None)
    (folder if inner else cache).chmod(0o770)
    assert compile_cache.keep() is None
    assert jax.config.jax_compilation_cache_dir is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "writable by others" in line and "chmod 700" in line


def test_a_folder_of_another_user_or_a_link_is_not_used(cache, tmp_path, capsys, monkeypatch):
    folder = compile_cache.keep()
    jax.config.update("jax_compilation_cache_dir", None)
    with monkeypatch.context() as other:
        other.setattr(compile_cache.os, "getuid", lambda: os.stat(folder).st_uid + 1)
        assert compile_cache.keep() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "owned by another user" in line
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert compile_cache.keep() is None
    assert "not a folder" in capsys.readouterr().err
    assert jax.config.jax_compilation_cache_dir is None


def test_a_cache_that_cannot_be_made_costs_one_line(cache, capsys):
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder would be")
    assert compile_cache.keep() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "compiled programs are not kept" in line


# Compiles one function with the cache in $1; prints whether its program came from there.
COMPILE = """
import logging, sys
from pathlib import Path
import platformdirs
platformdirs.user_cache_dir = lambda name: sys.argv[1]
from gr_jax.serving import compile_cache
folder = compile_cache.keep()
import jax, jax.monitoring
hits = []
jax.monitoring.register_event_listener(
    lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None
)
print(int(jax.jit(lambda x: 3 * x + 1)(2)), len(hits), folder)
"""


def test_programs_come_from_the_users_cache_and_never_from_a_workdir(tmp_path):
    def compiled(cache: Path) -> list[str]:
        env = {name: v for name, v in os.environ.items() if not name.startswith("JAX_")}
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, str(cache)],
            env=env | {"PYTHONPATH": str(ROOT)},
            cwd=workdir,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").touch()
    first = compiled(tmp_path / "cache")
    assert first[:2] == ["7", "0"] and any(Path(first[2]).iterdir())
    assert compiled(tmp_path / "cache")[:2] == ["7", "1"]
    # the same programs, planted where a workdir once had them
    (tmp_path / "cache" / "compiled").rename(workdir / "compiled")
    assert compiled(tmp_path / "other")[:2] == ["7", "0"]
    assert compiled(tmp_path / "cache")[:2] == ["7", "0"]
