"""Configs are trees of frozen dataclasses; a config file is Python with `get_config(variant) -> Config`.

Command line: `--config=configs/ml_1m.py:large --config.model.width=64`. A mistake is a `ConfigError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


class ConfigError(ValueError):
    """A mistake in a config or on the command line, told in one line."""


def _check(ok: bool, name: str, value, rule: str) -> None:
    if not ok:
        raise ConfigError(f"config.{name}={value!r}: must be {rule}")


def _check_types(config, group: str = "") -> None:
    """Every field has the type of its default; an int will do for a float, a bool never for an int.

    The dataclasses below carry `no_type_check`, so that in the tests too a wrong type is told here.
    """
    for f in dataclasses.fields(config):
        value, kind = getattr(config, f.name), _kind(f)
        name = f"config.{group}{f.name}"
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ConfigError(f"{name}: expected {kind.__name__}, got {value!r}")
        if kind is float and not math.isfinite(value):
            raise ConfigError(f"{name}: expected a finite number, got {value!r}")


def _kind(f: dataclasses.Field) -> type:
    return f.default_factory if f.default is dataclasses.MISSING else type(f.default)  # type: ignore


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    hint = difflib.get_close_matches(value, choices, 1)
    did_you_mean = f"; did you mean {hint[0]!r}?" if hint else ""
    _check(value in choices, name, value, f"one of {', '.join(choices)}{did_you_mean}")


@typing.no_type_check
@dataclass(frozen=True)
class SyntheticConfig:
    """The generated log of `data/synthetic.py`: the next event depends on order and on elapsed time."""

    num_users: int = 4000  # users in the log
    num_items: int = 1000  # items in the catalogue
    mean_length: float = 40.0  # mean events per user (log-normal, at least 5)
    seed: int = 0  # of the generated world, apart from the training seed

    def __post_init__(self):
        _check_types(self, "data.synthetic.")
        for name in ("num_users", "num_items"):
            _check(getattr(self, name) >= 1, f"data.synthetic.{name}", getattr(self, name), "at least 1")
        _check(self.mean_length >= 5, "data.synthetic.mean_length", self.mean_length, "at least 5")


SOURCES = (
    "ml-100k",
    "ml-1m",
    "ml-20m",
    "amazon-2014",
    "amazon-2023",
    "kuairand",
    "csv",
    "parquet",
    "synthetic",
)


@typing.no_type_check
@dataclass(frozen=True)
class DataConfig:
    """Where the raw log is, how it is read and how histories are laid out."""

    source: str = "csv"  # format of the raw log, one of SOURCES
    path: str = ""  # raw folder or file; "" = data/<source>, filled by download where the source has a site
    prepared: str = ""  # folder of the prepared dataset; "" = data/prepared/<source>-<fingerprint>
    user_column: str = "user_id"  # csv and parquet only: name of the user column
    item_column: str = "item_id"  # csv and parquet only: name of the item column
    time_column: str = "timestamp"  # csv and parquet only: name of the time column
    rating_column: str = ""  # csv and parquet only: name of the rating column; "" = none
    time_unit: str = "s"  # csv and parquet only: unit of the time column, s or ms
    filter: str = "none"  # none | k_core (repeated until stable) | one_pass (counted once, as in the paper)
    min_events: int = 5  # events a user and an item need under `filter`
    on_bad_row: str = "error"  # error = stop at the first bad row | skip = leave bad rows out and report them
    max_length: int = 200  # N: most recent events of a user that the model sees; the 1/N of the attention
    row_length: int = 256  # L: tokens in a packed row, at least max_length
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)  # only for source="synthetic"

    def __post_init__(self):
        _check_types(self, "data.")
        _check_choice("data.source", self.source, SOURCES)
        _check_choice("data.time_unit", self.time_unit, ("s", "ms"))
        _check_choice("data.filter", self.filter, ("none", "k_core", "one_pass"))
        _check_choice("data.on_bad_row", self.on_bad_row, ("error", "skip"))
        _check(self.min_events >= 1, "data.min_events", self.min_events, "at least 1")
        _check(self.max_length >= 1, "data.max_length", self.max_length, "at least 1")
        rule = f"at least data.max_length={self.max_length}"
        _check(self.row_length >= self.max_length, "data.row_length", self.row_length, rule)


ATTENTION = ("reference", "xla", "pallas_triton", "pallas_mosaic_gpu", "jax_triton")


@typing.no_type_check
@dataclass(frozen=True)
class ModelConfig:
    """The encoder: embeddings, blocks and output."""

    kind: str = "hstu"  # hstu | sasrec (the reference repository's softmax baseline)
    width: int = 50  # D: model width
    num_blocks: int = 2  # encoder blocks
    num_heads: int = 1  # H: attention heads
    qk_width: int = 50  # A: query and key width of a head (hstu; sasrec uses width / num_heads)
    v_width: int = 50  # V: value width of a head (hstu; sasrec uses width / num_heads)
    ffn_width: int = 50  # hidden width of the feed-forward layer (sasrec only)
    bias: str = "both"  # relative attention bias: none | position | time | both (hstu only)
    use_query_time: bool = True  # time bias from the time of the event to predict, else from the token's own
    input_dropout: float = 0.2  # after the input embeddings
    dropout: float = 0.2  # before the output projection of a block
    temperature: float = 0.05  # of the dot product of L2-normalised vectors
    compute_dtype: str = "float32"  # float32 | bfloat16: activations and matmuls; parameters stay float32
    remat: bool = False  # recompute each block in the backward pass: less memory, more time
    scan_blocks: bool = False  # one compiled block looped over depth: shorter compile for deep models
    attention: str = ""  # attention implementation, one of ATTENTION; "" = the best that can run here (hstu only)

    def __post_init__(self):
        _check_types(self, "model.")
        _check_choice("model.kind", self.kind, ("hstu", "sasrec"))
        _check_choice("model.bias", self.bias, ("none", "position", "time", "both"))
        _check_choice("model.compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
        _check_choice("model.attention", self.attention, ("", *ATTENTION))
        for name in ("width", "num_blocks", "num_heads", "qk_width", "v_width", "ffn_width"):
            _check(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        for name in ("input_dropout", "dropout"):
            _check(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "in [0, 1)")
        _check(self.temperature > 0, "model.temperature", self.temperature, "positive")
        if self.kind == "sasrec":
            rule = f"a multiple of model.num_heads={self.num_heads}"
            _check(self.width % self.num_heads == 0, "model.width", self.width, rule)


@typing.no_type_check
@dataclass(frozen=True)
class LossConfig:
    """Next-item loss over the catalogue."""

    kind: str = "full"  # full softmax | per_token: K negatives a token | group: K shared by a block of tokens
    negatives: int = 128  # K, for per_token and group
    group: int = 128  # tokens that share their K negatives, for group; divides data.row_length
    sampler: str = "uniform"  # of the negatives: uniform over the catalogue | in_batch: labels of this batch
    log_q: bool = False  # subtract the log of each item's sampling probability (only changes in_batch)
    chunk_tokens: int = 512  # tokens whose logits are in memory at once

    def __post_init__(self):
        _check_types(self, "loss.")
        _check_choice("loss.kind", self.kind, ("full", "per_token", "group"))
        _check_choice("loss.sampler", self.sampler, ("uniform", "in_batch"))
        for name in ("negatives", "group", "chunk_tokens"):
            _check(getattr(self, name) >= 1, f"loss.{name}", getattr(self, name), "at least 1")


@typing.no_type_check
@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, with the settings of the paper's public code."""

    learning_rate: float = 1e-3  # constant after the warm-up
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.98  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.0  # decoupled, on every parameter
    warmup_steps: int = 0  # steps of linear warm-up from 0

    def __post_init__(self):
        _check_types(self, "optimizer.")
        _check(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "positive")
        _check(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "at least 0")


@typing.no_type_check
@dataclass(frozen=True)
class TrainConfig:
    """Length of the training and how often it reports, validates and saves."""

    epochs: int = 101  # passes over the users
    steps: int = 0  # stop after this many steps; 0 = after `epochs`
    batch_users: int = 128  # mean users in a global batch; the rows of a batch follow from it
    log_every: int = 10  # steps between console and metrics lines
    validate_every: int = 1  # epochs between validations
    patience: int = 10  # validations without a better NDCG@10 before stopping; 0 = never stop early
    checkpoint_every: int = 500  # steps between checkpoints, besides the one after each validation

    def __post_init__(self):
        _check_types(self, "train.")
        for name in ("epochs", "batch_users", "log_every", "validate_every", "checkpoint_every"):
            _check(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        _check(self.steps >= 0, "train.steps", self.steps, "at least 0")
        _check(self.patience >= 0, "train.patience", self.patience, "at least 0")


@typing.no_type_check
@dataclass(frozen=True)
class EvaluateConfig:
    """Leave-one-out ranking of the whole catalogue."""

    exclude: str = "history"  # not ranked: history = all the user had before | visible = in the N seen | none
    batch_users: int = 256  # mean users in an evaluation batch
    valid_users: int = 0  # validate on a fixed random sample of this many; 0 = all. The test is on all
    chunk_items: int = 65536  # catalogue items scored at once

    def __post_init__(self):
        _check_types(self, "evaluate.")
        _check_choice("evaluate.exclude", self.exclude, ("history", "visible", "none"))
        for name in ("batch_users", "chunk_items"):
            _check(getattr(self, name) >= 1, f"evaluate.{name}", getattr(self, name), "at least 1")
        _check(self.valid_users >= 0, "evaluate.valid_users", self.valid_users, "at least 0")


# The first pattern found in a parameter's path decides how it is laid out; with none it is on every device.
ShardingRules = tuple[tuple[str, tuple], ...]


@typing.no_type_check
@dataclass(frozen=True)
class MeshConfig:
    """The device mesh: batch rows over `data`, wide matrices over `model`, embedding rows over both."""

    data: int = 0  # devices along the batch; 0 = all devices divided by `model`
    model: int = 1  # devices along heads and projections
    rules: ShardingRules = (  # (regular expression on the parameter path, mesh axes of each dimension)
        (r"item_table", (("data", "model"), None)),
        (r"blocks/\d+/uvqk", (None, "model")),
        (r"blocks/\d+/output/kernel", ("model", None)),
    )

    def __post_init__(self):
        _check_types(self, "mesh.")
        _check(self.data >= 0, "mesh.data", self.data, "at least 0")
        _check(self.model >= 1, "mesh.model", self.model, "at least 1")
        pairs = all(type(r) is tuple and [type(x) for x in r] == [str, tuple] for r in self.rules)
        _check(pairs, "mesh.rules", self.rules, "pairs of a pattern and a tuple of mesh axes")


@typing.no_type_check
@dataclass(frozen=True)
class Config:
    """Everything that decides a run; written to `config.json` in the workdir."""

    seed: int = 0  # of initialisation, shuffling, dropout and negatives
    data: DataConfig = field(default_factory=DataConfig)  # raw log and layout
    model: ModelConfig = field(default_factory=ModelConfig)  # encoder
    loss: LossConfig = field(default_factory=LossConfig)  # training objective
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # AdamW
    train: TrainConfig = field(default_factory=TrainConfig)  # schedule
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)  # protocol
    mesh: MeshConfig = field(default_factory=MeshConfig)  # devices

    def __post_init__(self):
        _check_types(self)
        if self.loss.kind == "group":
            rule = f"a divisor of data.row_length={self.data.row_length}"
            _check(self.data.row_length % self.loss.group == 0, "loss.group", self.loss.group, rule)
        if self.mesh.data:
            users, rule = self.train.batch_users, f"at least mesh.data={self.mesh.data}"
            _check(users >= self.mesh.data, "train.batch_users", users, rule)


def load(spec: str) -> Config:
    """The config of `FILE` or `FILE:variant`.

    Raises:
      ConfigError: no such file, no `get_config` in it, an unknown variant, or the file fails (with its line).
    """
    file, _, variant = spec.partition(":")
    path = Path(file)
    if not path.is_file():
        names = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = difflib.get_close_matches(file, names, 1) or difflib.get_close_matches(file + ".py", names, 1)
        raise ConfigError(f"--config: no file {file!r}" + (f"; did you mean {hint[0]!r}?" if hint else ""))
    module = types.ModuleType("config_file")
    module.__file__ = file
    try:
        exec(compile(path.read_bytes(), file, "exec"), vars(module))
        if not hasattr(module, "get_config"):
            raise UnknownVariant(f"--config: {file!r} defines no get_config(variant)")
        config = module.get_config(variant) if variant else module.get_config()
    except UnknownVariant:
        raise
    except Exception as error:
        raise ConfigError(_where_it_failed(error, file)) from error
    if not isinstance(config, Config):
        raise ConfigError(f"--config: get_config in {file!r} returned {type(config).__name__}, not a Config")
    return config


def _where_it_failed(error: Exception, file: str) -> str:
    from gr_jax.overrides import nearest  # here, because that file needs this one

    line, trace = None, error.__traceback__
    while trace:  # the innermost line of the file itself, not of what it called
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == file else line
        trace = trace.tb_next
    what = str(error)
    if isinstance(error, SyntaxError):
        line, what = error.lineno, error.msg
    unknown = re.search(r"unexpected keyword argument '(\w+)'", what)
    hint = nearest(unknown[1]) if unknown and "Did you mean" not in what else ""
    kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
    return f"{file}{f':{line}' if line else ''}: {kind}{what}{hint}"


class UnknownVariant(ConfigError):
    """The part of `--config` after the file name means nothing to the file."""


def unknown_variant(variant: str, variants: Sequence[str]) -> UnknownVariant:
    """The error a config file raises for a variant it does not have."""
    hint = difflib.get_close_matches(variant, variants, 1)
    did_you_mean = f"; did you mean {hint[0]!r}?" if hint else ""
    return UnknownVariant(f"--config: no variant {variant!r}, only {', '.join(variants)}{did_you_mean}")


def to_dict(config: Config) -> dict:
    """The config as nested plain dicts, as written to `config.json`."""
    return dataclasses.asdict(config)


def from_dict(values: typing.Any) -> Config:
    """The config of `to_dict`; lists (JSON has no tuples) become tuples again.

    Raises:
      ConfigError: a field this version does not know, or a value of another type.
    """
    return _build(Config, values, "config")


def _build(cls: type, values: typing.Any, path: str) -> typing.Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a group of fields, got {values!r}")
    kinds = {f.name: _kind(f) for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise ConfigError(f"{path} has no field {unknown[0]!r}: was it written by another version of gr_jax?")
    made = {}
    for name, value in values.items():
        nested = dataclasses.is_dataclass(kinds[name])
        made[name] = _build(kinds[name], value, f"{path}.{name}") if nested else _tuples(value)
    return cls(**made)


def _tuples(value: typing.Any) -> typing.Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def save(config: Config, path: Path) -> None:
    """Writes `config` as JSON; a reader sees the whole file or none, also when the process is killed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    os.replace(partial, path)


def read(path: Path) -> Config:
    """Reads what `save` wrote.

    Raises:
      ConfigError: not JSON, or not of this version.
    """
    try:
        return from_dict(json.loads(path.read_text()))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
