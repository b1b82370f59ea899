"""What README.md and docs/ tell people to type: run where that takes seconds, else its flags, fields and files exist.

The tutorial as a whole is run by experiments/newcomer.py.
"""

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax import train
from gr_jax.config import Config, DataConfig, files
from gr_jax.config.overrides import leaves, override_all

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
HEREDOC = re.compile(r"^cat > (configs/\w+\.py) <<'END'\n(.*?)^END$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIELD = re.compile(
    r"`((?:data|model|vocabulary|loss|ranking|train|evaluate|mesh|optimizer)\.(?!py|yaml)[a-z_]+)[`=]"
)
FILE = re.compile(r"[`( ]((?:[\w.]+/)*\w+\.(?:py|json|sh|md))(?:[`:) ,]|$)", re.MULTILINE)
MADE = ("config.json", "dataset.json", "result.json", "block_sizes.json")  # what the commands write
COMMAND = re.compile(r"python -m ((?:gr_jax|pallas_kernels)\.\w+)((?: +[^\s`|&#;),]+)*)")


def text_of(path: Path) -> str:
    return path.read_text().replace("\\\n", " ")


def commands() -> list:
    found = {}
    for path in [*PAGES, *CONFIGS]:
        for module, rest in COMMAND.findall(text_of(path)):
            if not module.endswith(".X"):  # "python -m gr_jax.X"
                found[f"{module}{rest}"] = (module, shlex.split(rest))
    return [pytest.param(*command, id=name) for name, command in found.items()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder with our configs and those that the pages tell people to write."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for page in PAGES:
        for name, code in HEREDOC.findall(page.read_text()):
            (folder / name).write_text(code)
    return folder


@pytest.mark.parametrize(("module", "words"), commands())
def test_a_command_has_the_flags_and_the_config_that_it_is_given(
    module, words, checkout, monkeypatch, capsys
):
    monkeypatch.chdir(checkout)
    spec = next(
        (word.removeprefix("--config=") for word in words if word.startswith("--config=")), None
    )
    if spec != "FILE":  # a placeholder
        words = [word.rstrip(".:") for word in words]
        with pytest.raises(SystemExit) as done:
            module = module.replace("pallas_kernels.bench", "pallas_kernels.bench.__main__")
            importlib.import_module(module).main([*words, "--help"])  # reads the words first
        assert not done.value.code
        told = capsys.readouterr().out
        flags = [
            word.partition("=")[0]
            for word in words
            if word.startswith("--") and "--config" not in word
        ]
        assert all(flag.replace("-", "_").lstrip("_") in told.replace("-", "_") for flag in flags)
        assert spec is None or isinstance(files.load(spec), Config)


def test_each_config_field_that_a_page_sets_exists_and_takes_the_value():
    fields = leaves(Config())
    for path in [*PAGES, *CONFIGS]:
        for line in text_of(path).splitlines():
            given = dict(re.findall(r"--config\.([a-z_.]+[a-z_])(?:=([^\s`,;)]+))?", line))
            assert given.keys() <= fields.keys(), f"{path.name}: {line}"
            override_all(
                Config(), {name: value.rstrip(".") for name, value in given.items() if value}
            )
        for name in FIELD.findall(text_of(path)):
            assert name in fields, f"{path.name}: {name}"


def test_each_file_that_a_page_names_is_there():
    roots = [
        ROOT,
        *(ROOT / name for name in ("gr_jax", "pallas_kernels", "tests", "tests/pallas_kernels")),
    ]
    written = {name for page in PAGES for name, _ in HEREDOC.findall(page.read_text())}
    missing = []
    for page in PAGES:
        for name in FILE.findall(page.read_text()):
            made = name in written or Path(name).name in MADE
            if not made and not any((root / name).exists() for root in [*roots, page.parent]):
                missing.append(f"{page.name}: {name}")
    assert not missing


def test_the_python_of_the_readme_runs(checkout, monkeypatch):
    """The blocks in order: two pieces of a config, a trained run that answers, the attention operation."""
    monkeypatch.chdir(checkout)
    data, ranking, answers, attention = PYTHON.findall((ROOT / "README.md").read_text())
    known = eval(f"DataConfig(source='csv',\n{data})", {"DataConfig": DataConfig})
    names: dict = {}
    exec(f"from gr_jax.config import *\n{ranking}", names)
    assert Config(data=known, ranking=names["ranking"]).ranking.tasks == ("click", "long")

    rng = np.random.default_rng(0)
    lines = ["user,product,clicked_at"]
    for user in range(40, 56):
        items = [1193, 661, 2355, *rng.integers(3000, 3020, 9)]
        lines += [f"{user},{item},{978_300_000 + 50 * i}" for i, item in enumerate(items)]
    Path("clicks.csv").write_text("\n".join(lines) + "\n")
    sizes = ("width=8", "num_blocks=1", "num_heads=1", "qk_width=4", "v_width=4")
    small = [f"--config.model.{size}" for size in sizes] + [
        "--config.train.steps=2",
        "--config.mesh.data=1",
    ]
    assert (
        train.main(["--config=configs/mine.py", "--workdir=runs/mine", "--report=false", *small])
        == 0
    )
    names = {}
    exec(answers, names)
    assert (
        len(names["model"].recommend(names["history"], k=10, at_time="now", deny=["2355"]).items)
        == 10
    )

    q = jnp.asarray(rng.normal(size=(2, 16, 2, 8)), jnp.float32)
    times = jnp.cumsum(jnp.ones((2, 16), jnp.int32), axis=1)
    names = {
        "q": q,
        "k": q,
        "v": q,
        "segments": jnp.ones((2, 16), jnp.int32),
        "tq": times,
        "tk": times,
    }
    names |= {"p": jnp.zeros(200), "t": jnp.zeros(129)}
    exec(attention, names)
    assert names["out"].shape == q.shape


def test_the_python_of_the_kernel_notes_runs():
    for code in PYTHON.findall((ROOT / "docs" / "kernels.md").read_text()):
        exec(code, {})


def test_requests_in_the_pages_are_json():
    for page in PAGES:
        for request in re.findall(r"-d '(.*?)'", page.read_text()):
            assert isinstance(json.loads(request), dict)
