"""Configs: rules, files, overrides, round trips; the shipped files load and say how to run them."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from gr_jax import config
from gr_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    EvaluateConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RankingConfig,
    SyntheticConfig,
    TrainConfig,
    files,
)
from gr_jax.config.overrides import comments, leaves, override_all

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {
    "amazon": [
        *("books", "books-large", "books-sasrec"),
        *("beauty", "beauty-sasrec", "beauty-transformer"),
        "trillion",
    ],
    "kuairand": ["base", "ranking"],
    "ml_1m": ["base", "large", "swiglu", "sasrec", "transformer", "ranking", "ranking-dlrm"],
    "ml_20m": ["base", "large", "sasrec"],
    "synthetic": ["base", "ranking", "ranking-dlrm"],
}


def write(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


def one_line(function, *args) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Rules


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: DataConfig(source="ml-2m"), "config.data.source='ml-2m': must be one of"),
        (
            lambda: DataConfig(max_length=300),
            "config.data.row_length=256: must be at least data.max_length=300",
        ),
        (lambda: DataConfig(max_length="200"), "config.data.max_length: expected int, got '200'"),  # type: ignore
        (lambda: ModelConfig(window=-1), "config.model.window=-1: must be at least 0"),
        (
            lambda: ModelConfig(kind="sasrec", window=5),
            "config.model.window=5: must be 0 for model.kind=sasrec",
        ),
        (lambda: ModelConfig(remat=1), "config.model.remat: expected bool, got 1"),  # type: ignore
        (lambda: ModelConfig(num_blocks=True), "config.model.num_blocks: expected int, got True"),
        (
            lambda: ModelConfig(temperature=float("nan")),
            "config.model.temperature: expected a finite number",
        ),
        (
            lambda: ModelConfig(kind="sasrec", num_heads=3),
            "config.model.width=50: must be a multiple of",
        ),
        (lambda: LossConfig(kind="groups"), "did you mean 'group'?"),
        (
            lambda: Config(loss=LossConfig(kind="group", group=100)),
            "config.loss.group=100: must be a divisor",
        ),
        (lambda: Config(data=LossConfig()), "config.data: expected DataConfig, got"),  # type: ignore
        (
            lambda: Config(mesh=MeshConfig(data=256)),
            "config.train.batch_users=128: must be at least",
        ),
        (lambda: MeshConfig(rules=(("a", "data"),)), "config.mesh.rules"),  # type: ignore
        (lambda: Config(seed=-1), "config.seed=-1: must be in [0, 2^32)"),
        (lambda: SyntheticConfig(seed=-1), "config.data.synthetic.seed=-1: must be in [0, 2^32)"),
        (lambda: OptimizerConfig(b1=1.0), "config.optimizer.b1=1.0: must be in [0, 1)"),
        (lambda: OptimizerConfig(eps=0.0), "config.optimizer.eps=0.0: must be positive"),
        (
            lambda: OptimizerConfig(weight_decay=-0.1),
            "config.optimizer.weight_decay=-0.1: must be at least 0",
        ),
    ],
)
def test_a_broken_rule_names_the_field_its_value_and_the_rule(make, expected):
    assert expected in one_line(make)


RANKING: dict[str, Any] = {"ranking": RankingConfig(tasks=("rating",))}
DLRM: dict[str, Any] = {"model": ModelConfig(kind="dlrm")}
STREAM: dict[str, Any] = {"mode": "streaming"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"data": DataConfig(stochastic_length_alpha=1.7), "train": TrainConfig(**STREAM)},
            "config.data.stochastic_length_alpha=1.7: must be 2 (off)"
            " with train.mode=streaming; it cuts epochs",
        ),
        (
            {"data": DataConfig(stochastic_length_alpha=1.7), **DLRM},
            "config.data.stochastic_length_alpha=1.7: must be 2 (off)"
            " with model.kind=dlrm; it cuts epochs",
        ),
        (
            {"train": TrainConfig(**STREAM, sampling_rate=8.0), **DLRM},
            "config.train.sampling_rate=8.0: must be 0.0, its default,"
            " with model.kind=dlrm, which streams events",
        ),
        (
            {"train": TrainConfig(**STREAM, session_gap=60), **DLRM},
            "config.train.session_gap=60: must be 3600, its default,"
            " with model.kind=dlrm, which streams events",
        ),
        (
            {"evaluate": EvaluateConfig(valid_users=5)},
            "config.evaluate.valid_users=5: must be 0 for ranking",
        ),
    ],
)
def test_a_setting_that_a_ranking_run_would_ignore_is_an_error(fields, expected):
    assert expected in one_line(lambda: Config(**RANKING, **fields))


def test_a_setting_that_a_ranking_run_uses_is_accepted():
    scheme = TrainConfig(**STREAM, session_gap=60, sampling_rate=8.0)
    assert Config(**RANKING, train=scheme).train == scheme
    assert Config(**RANKING, **DLRM, train=TrainConfig(**STREAM)).train.mode == "streaming"
    assert (
        Config(**RANKING, data=DataConfig(stochastic_length_alpha=1.7)).data.stochastic_length_alpha
        == 1.7
    )
    assert Config(evaluate=EvaluateConfig(valid_users=5)).evaluate.valid_users == 5


def test_an_int_passes_for_a_float():
    assert ModelConfig(dropout=0).dropout == 0


def test_configs_are_hashable_and_equal_by_value():
    assert hash(Config()) == hash(Config()) and Config() == Config()
    assert Config(seed=1) != Config()


def test_every_field_of_every_group_has_a_comment():
    source = "".join(
        inspect.getsource(group)
        for group in vars(config).values()
        if dataclasses.is_dataclass(group)
    )
    lines = source.splitlines()
    fields = [
        (group.name, field)
        for group in ast.parse(source).body
        if isinstance(group, ast.ClassDef)
        for field in group.body
        if isinstance(field, ast.AnnAssign)
    ]
    bare = [
        f"{name}.{ast.unparse(field.target)}"
        for name, field in fields
        if not re.search(r"  # \S", lines[field.lineno - 1])
        and not lines[field.lineno - 2].startswith("    # ")
    ]
    assert len({name for name, _ in fields}) == 11 and len(fields) > 60
    assert not bare


def test_help_finds_the_comment_of_every_field():
    assert comments(Config()).keys() == leaves(Config()).keys()
    assert all(comments(Config()).values())
    assert comments(Config())["data.row_length"].startswith("L: tokens in a packed row")


# Overrides


def test_overrides_take_the_type_of_their_field():
    texts = {
        "seed": "7",
        "data.path": "17",
        "data.synthetic.mean_length": "50",
        "model.dropout": "1e-1",
        "model.remat": "True",
        "model.scan_blocks": "true",
        "mesh.rules": "(('item_table', ('model', None)),)",
    }
    changed = override_all(Config(), texts)
    assert changed.seed == 7 and changed.data.path == "17" and changed.model.dropout == 0.1
    assert changed.model.remat is True and changed.model.scan_blocks is True
    assert isinstance(changed.data.synthetic.mean_length, float)
    assert changed.mesh.rules == (("item_table", ("model", None)),)
    assert (
        dataclasses.replace(changed.model, dropout=0.2, remat=False, scan_blocks=False)
        == ModelConfig()
    )


@pytest.mark.parametrize(
    "keys", [("data.max_length", "data.row_length"), ("data.row_length", "data.max_length")]
)
def test_fields_that_have_to_fit_each_other_can_be_set_in_any_order(keys):
    texts = {"data.max_length": "300", "data.row_length": "512"}
    changed = override_all(Config(), {key: texts[key] for key in keys})
    assert (changed.data.max_length, changed.data.row_length) == (300, 512)


def test_fields_of_two_groups_that_have_to_fit_can_be_set_together():
    start = Config(loss=LossConfig(kind="group", group=128))
    changed = override_all(start, {"data.row_length": "200", "loss.group": "50"})
    assert (changed.data.row_length, changed.loss.group) == (200, 50)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("model.widht", "3", "config.model has no field 'widht'; did you mean config.model.width?"),
        (
            "num_blocks",
            "3",
            "config has no field 'num_blocks'; did you mean config.model.num_blocks?",
        ),
        ("modle.kind", "x", "config has no field 'modle'; did you mean config.model.kind?"),
        (
            "model.batch_users",
            "3",
            "did you mean config.train.batch_users or config.evaluate.batch_users?",
        ),
        ("model.zzz", "3", "config.model has no field 'zzz'; it has kind, width,"),
        ("model.width.x", "3", "config.model.width is a value and has no field 'x'"),
        ("model", "3", "config.model is a group of fields: set one of kind,"),
        ("model.width", "wide", "config.model.width: expected int, got 'wide'"),
        ("model.width", "3.5", "config.model.width: expected int, got '3.5'"),
        ("model.width", "True", "config.model.width: expected int, got 'True'"),
        ("model.remat", "1", "config.model.remat: expected bool, got '1'"),
        ("model.dropout", "inf", "config.model.dropout: expected float, got 'inf'"),
        ("model.dropout", "1e999", "config.model.dropout: expected float, got '1e999'"),
        ("model.dropout", "2", "config.model.dropout=2.0: must be in [0, 1)"),
        ("mesh.rules", "(1, 2)", "config.mesh.rules=(1, 2): must be pairs"),
        ("", "3", "config has no field ''"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_field(key, text, expected):
    assert expected in one_line(override_all, Config(), {key: text})


# Files


def test_a_file_gives_its_default_or_a_named_variant(tmp_path):
    spec = write(
        tmp_path,
        "from gr_jax.config import Config\ndef get_config(v='1'): return Config(seed=int(v))\n",
    )
    assert files.load(spec).seed == 1
    assert files.load(f"{spec}:5").seed == 5


def test_a_file_edited_within_the_same_second_is_read_again(tmp_path):
    for seed in (3, 4, 5):
        text = f"from gr_jax.config import Config\ndef get_config(): return Config(seed={seed})\n"
        assert files.load(write(tmp_path, text)).seed == seed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import gr_jax.nothing\n", "mine.py:1: ModuleNotFoundError"),
        ("x = 1\nx ==\n", "mine.py:2: SyntaxError: invalid syntax"),
        ("x = 1\n\nx = 1 / 0\n", "mine.py:3: ZeroDivisionError: division by zero"),
        (
            "from gr_jax.config import *\ndef get_config():\n    return Config(seed='a')\n",
            "mine.py:3: config.seed: exp",
        ),
        (
            "from gr_jax.config import *\ndef get_config():\n  return TrainConfig(epoch=1)\n",
            "mean config.train.epochs?",
        ),
        ("x = 1\n", "defines no get_config"),
        ("def get_config(): return {}\n", "returned dict, not a Config"),
    ],
)
def test_a_file_that_fails_is_one_line_with_file_and_line(tmp_path, text, expected):
    assert expected in one_line(files.load, write(tmp_path, text))


def test_a_missing_file_suggests_the_nearest(tmp_path):
    spec = write(tmp_path, "")
    assert f"did you mean {spec!r}?" in one_line(files.load, spec.replace("mine", "mien"))
    assert f"did you mean {spec!r}?" in one_line(files.load, spec.removesuffix(".py"))
    assert "no file 'nowhere/x.py'" in one_line(files.load, "nowhere/x.py")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_file_says_how_to_run_what_it_costs_and_what_to_expect(path):
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"python -m gr_jax.train --config=configs/{path.name}" in doc
    assert re.search(r"cost|minutes|hours", doc, re.IGNORECASE) and re.search(
        r"expect|HR@10", doc, re.IGNORECASE
    )
    assert isinstance(files.load(str(path)), Config)


@pytest.mark.parametrize(
    "spec", [f"{name}:{variant}" for name in VARIANTS for variant in VARIANTS[name]]
)
def test_every_variant_loads_and_is_named_in_the_docstring(spec):
    name, variant = spec.split(":")
    path = ROOT / "configs" / f"{name}.py"
    loaded = files.load(f"{path}:{variant}")
    default = files.load(str(path))
    assert (loaded == default) == (variant == VARIANTS[name][0])
    assert f"{path.name}:{variant}" in path.read_text() or loaded == default


@pytest.mark.parametrize("name", VARIANTS)
def test_flags_that_a_docstring_suggests_can_be_added_to_each_of_its_variants(name):
    path = ROOT / "configs" / f"{name}.py"
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    lines = [line for line in doc.splitlines() if line.strip().startswith("add --config.")]
    assert len(lines) == doc.count("add --config."), "one a line, at its beginning"
    for line in lines:
        changes = dict(re.findall(r"--config\.([\w.]+)=(\S+)", line))
        for variant in VARIANTS[name]:
            override_all(files.load(f"{path}:{variant}"), changes)


def test_an_unknown_variant_names_the_known_ones():
    for name, variants in VARIANTS.items():
        message = one_line(files.load, f"{ROOT / 'configs' / name}.py:{variants[1][:-1]}")
        assert all(v in message for v in variants)
        assert f"did you mean {variants[1]!r}?" in message


def test_the_books_config_is_the_papers():
    books = files.load(f"{ROOT}/configs/amazon.py:books-large")
    assert (
        books.model.num_blocks,
        books.model.num_heads,
        books.model.qk_width,
        books.model.v_width,
    ) == (
        16,
        8,
        8,
        8,
    )
    assert (books.data.filter, books.data.max_length, books.loss.kind, books.loss.negatives) == (
        "one_pass",
        50,
        "per_token",
        512,
    )


# Round trips


def test_a_saved_config_reads_back_equal(tmp_path):
    saved = Config(seed=3, train=TrainConfig(steps=5), mesh=MeshConfig(model=2))
    files.save(saved, tmp_path / "config.json")
    assert files.read(tmp_path / "config.json") == saved
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "config.json:1: not JSON"),
        ("[]", "config: expected a group of fields"),
        ('{"model": {"depth": 3}}', "config.model has no field 'depth'"),
        ('{"model": {"width": "3"}}', "config.model.width: expected int, got '3'"),
    ],
)
def test_a_damaged_saved_config_names_the_file_and_the_field(tmp_path, text, expected):
    (tmp_path / "config.json").write_text(text)
    message = one_line(files.read, tmp_path / "config.json")
    assert expected in message and "config.json" in message


def test_a_split_by_time_is_for_retrieval_and_its_moments_for_it_alone():
    with pytest.raises(ConfigError, match=r"evaluate.test_from=0.7: must be with evaluate.split"):
        EvaluateConfig(test_from=0.7)
    with pytest.raises(ConfigError, match=r"evaluate.valid_time='May': must be a time such as"):
        EvaluateConfig(split="time", valid_time="May")
    with pytest.raises(ConfigError, match=r"evaluate.at=\(0,\): must be a tuple of whole numbers"):
        EvaluateConfig(at=(0,))
    tasks = {"ranking": RankingConfig(tasks=("seen",)), "data": DataConfig(actions=("seen=1",))}
    with pytest.raises(ConfigError, match="for ranking, which has a split by time of its own"):
        Config(evaluate=EvaluateConfig(split="time"), **tasks)
