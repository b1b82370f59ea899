"""What README.md, CONTRIBUTING.md and docs/ have people type runs, and what they name exists.

The tutorial as a whole is run by experiments/newcomer.py.
"""

import functools
import importlib
import importlib.util
import json
import pkgutil
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import gr_jax
from gr_jax import train
from gr_jax.config import Config, files
from gr_jax.config.overrides import leaves, override_all

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
HEREDOC = re.compile(r"^cat > (configs/\w+\.py) <<'END'\n(.*?)^END$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
FIELD = re.compile(
    r"`((?:data|model|vocabulary|loss|ranking|train|evaluate|mesh|optimizer)\.(?!py|yaml)[a-z_]+)[`=]"
)
FILE = re.compile(r"[`( ]((?:[\w.]+/)*\w+\.(?:py|json|sh|md))(?:[`:) ,]|$)", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
SIZES = {"width": 8, "num_blocks": 1, "num_heads": 1, "qk_width": 4, "v_width": 4}
SMALL = {f"model.{name}": size for name, size in SIZES.items()}
SMALL |= {"train.steps": 2, "mesh.data": 1}
MADE = (
    "best.py",
    "config.json",
    "chosen.py",
    "knn_vectors.npz",
    "search.json",
    "dataset.json",
    "init_from.json",
    "result.json",
    "block_sizes.json",
)  # what the commands write
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


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder with our configs and those that the pages tell people to write."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for page in PAGES:
        for name, code in HEREDOC.findall(page.read_text()):
            (folder / name).write_text(code)
    return folder


@pytest.fixture(scope="module")
def trained(checkout) -> Path:
    """The same folder with the run runs/mine, by the README's command and a small model."""
    rng = np.random.default_rng(0)
    lines = ["user,product,clicked_at"]
    for user in range(40, 56):
        items = [1193, 661, 2355, *rng.integers(3000, 3020, 9)]
        lines += [f"{user},{item},{978_300_000 + 50 * i}" for i, item in enumerate(items)]
    small = [*(f"--config.{name}={value}" for name, value in SMALL.items())]
    small += ["--report=false", "--budget=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(checkout)
        Path("clicks.csv").write_text("\n".join(lines) + "\n")
        columns = ("--user-column=user", "--item-column=product", "--time-column=clicked_at")
        assert train.main(["--data=clicks.csv", *columns, "--workdir=runs/mine", *small]) == 0
    return checkout


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
        help_text = capsys.readouterr().out
        flags = [
            word.partition("=")[0]
            for word in words
            if word.startswith("--") and "--config" not in word
        ]
        known = help_text.replace("-", "_")
        assert all(flag.replace("-", "_").lstrip("_") in known for flag in flags)
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
    written.add("configs/mine.py")  # a page may say so in words
    missing = []
    for page in PAGES:
        for name in FILE.findall(page.read_text()):
            made = name in written or Path(name).name in MADE
            if not made and not any((root / name).exists() for root in [*roots, page.parent]):
                missing.append(f"{page.name}: {name}")
    assert not missing


def test_each_module_that_a_page_names_can_be_found():
    missing = []
    for page in PAGES:
        for name in re.findall(r"python -m (experiments(?:\.\w+)+)", page.read_text()):
            if not importlib.util.find_spec(name):
                missing.append(f"{page.name}: {name}")
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE):
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError):
                missing.append(f"{page.name}: {name}")
    assert not missing


def test_each_link_leads_to_a_file_and_a_heading_that_are_there():
    dead = []
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for target, anchor in LINK.findall(FENCED.sub("", page.read_text())):
            path = page.parent / target if target else page
            if not path.exists() or (anchor and anchor not in anchors(path)):
                dead.append(f"{page.name}: {target}#{anchor}")
    assert not dead


def test_each_page_of_the_docs_is_in_the_navigation_and_on_the_first_page():
    listed = set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert {str(page.relative_to(ROOT / "docs")) for page in DOCS} == listed
    index = ROOT / "docs" / "index.md"
    linked = {target for target, _ in LINK.findall(index.read_text())}
    assert listed - {"index.md"} <= linked


def test_the_readme_is_one_page():
    assert len(README.read_text().splitlines()) <= 150


def test_text_is_at_most_100_columns_wide():
    for page in PAGES:
        for line in page.read_text().splitlines():
            assert len(line) <= 100 or line.startswith(("|", "![")), f"{page.name}: {line}"


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/index.md",
        "docs/own_log.md",
        "docs/ranking.md",
        "docs/serving.md",
        "docs/kernels.md",
        "docs/api/trained_model.md",
    ],
)
def test_the_python_of_a_page_runs(name, trained, monkeypatch):
    """Its blocks in order, as one program."""
    monkeypatch.chdir(trained)
    monkeypatch.setattr(
        gr_jax, "fit", functools.partial(gr_jax.fit, budget=0, **SMALL), raising=False
    )
    blocks = PYTHON.findall((ROOT / name).read_text())
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(block, names)
    if name == "README.md":
        assert len(names["best"].items) == 10
        assert [item.item for item in names["scores"]] == ["1193", "661"]


def test_requests_in_the_pages_are_json():
    for page in PAGES:
        for request in re.findall(r"-d '(.*?)'", page.read_text()):
            assert isinstance(json.loads(request), dict)
