"""Configs are trees of frozen dataclasses; a config file is Python with `get_config(variant) -> Config`.

Command line: `--config=configs/ml_1m.py:large --config.model.width=64`. A mistake is a `ConfigError`.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field

from gr_jax.config.checks import ConfigError, check, check_choice, check_types


@typing.no_type_check
@dataclass(frozen=True)
class SyntheticConfig:
    """The generated log: of `data/synthetic.py`, or with actions of `data/synthetic_actions.py`."""

    num_users: int = 4000  # users in the log
    num_items: int = 1000  # items in the catalogue
    mean_length: float = 40.0  # mean events per user (log-normal, at least 5)
    seed: int = 0  # of the generated world, apart from the training seed
    # users act on some events: which, depends on how often and how recently they did before
    actions: bool = False

    def __post_init__(self):
        check_types(self, "data.synthetic.")
        for name in ("num_users", "num_items"):
            check(
                getattr(self, name) >= 1,
                f"data.synthetic.{name}",
                getattr(self, name),
                "at least 1",
            )
        check(self.mean_length >= 5, "data.synthetic.mean_length", self.mean_length, "at least 5")
        check(0 <= self.seed < 2**32, "data.synthetic.seed", self.seed, "in [0, 2^32)")


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
    # raw folder or file; "" = data/<source>, filled by download where the source has a site
    path: str = ""
    prepared: str = ""  # folder of the prepared dataset; "" = data/prepared/<source>-<fingerprint>
    user_column: str = "user_id"  # csv and parquet only: name of the user column
    item_column: str = "item_id"  # csv and parquet only: name of the item column
    time_column: str = "timestamp"  # csv and parquet only: name of the time column
    rating_column: str = ""  # csv and parquet only: name of the rating column; "" = none
    # csv and parquet only: unit of the time column, s or ms; date-times of Parquet have their own
    time_unit: str = "s"
    # none | k_core (repeated until stable) | one_pass (counted once, as in the paper)
    filter: str = "none"
    min_events: int = 5  # events a user and an item need under `filter`
    # error = stop at the first bad row | skip = leave bad rows out and report them
    on_bad_row: str = "error"
    # what can happen at an event: "watched=1", "click=is_click" (0/1 column), "liked=rating>=4"
    actions: tuple = ()
    # own file of user attributes, beside the log, with its user column; "" = that of the source
    user_file: str = ""
    user_features: tuple = ()  # columns of the user attributes that become the contextual prefix
    # own file of items, beside the log, with its item column; a column `title` names them
    item_file: str = ""
    # columns of the item attributes, several values a cell with "|" between
    item_features: tuple = ()
    # slowly changing user series, "country=country.csv": columns user, time and country
    series: tuple = ()
    max_series: int = 16  # most recent entries of all slow series together that a sequence takes in
    # N: most recent events of a user that the model sees; the 1/N of the attention
    max_length: int = 200
    row_length: int = 256  # L: tokens in a packed row, at least max_length
    # epochs cut long histories so that attention costs N^alpha; 2 = off
    stochastic_length_alpha: float = 2.0
    # events kept: greedy (most recent) | random | weighted (by recency)
    stochastic_length_selection: str = "weighted"
    # only for source="synthetic"
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self):
        check_types(self, "data.")
        check_choice("data.source", self.source, SOURCES)
        check_choice("data.time_unit", self.time_unit, ("s", "ms"))
        check_choice("data.filter", self.filter, ("none", "k_core", "one_pass"))
        check_choice("data.on_bad_row", self.on_bad_row, ("error", "skip"))
        check(self.min_events >= 1, "data.min_events", self.min_events, "at least 1")
        check(self.max_length >= 1, "data.max_length", self.max_length, "at least 1")
        for name in ("actions", "user_features", "item_features", "series"):
            value = getattr(self, name)
            check(all(type(x) is str for x in value), f"data.{name}", value, "a tuple of strings")
        check(self.max_series >= 0, "data.max_series", self.max_series, "at least 0")
        alpha = self.stochastic_length_alpha
        check(1 < alpha <= 2, "data.stochastic_length_alpha", alpha, "in (1, 2]; 2 is off")
        selections = ("greedy", "random", "weighted")
        check_choice(
            "data.stochastic_length_selection", self.stochastic_length_selection, selections
        )
        rule = f"at least data.max_length={self.max_length}"
        check(self.row_length >= self.max_length, "data.row_length", self.row_length, rule)


ATTENTION = ("reference", "xla", "pallas_triton", "pallas_mosaic_gpu", "jax_triton")


@typing.no_type_check
@dataclass(frozen=True)
class ModelConfig:
    """The encoder: embeddings, blocks and output."""

    # hstu | baselines of retrieval: sasrec, hstu_softmax (needs bias=none) | of ranking: dlrm
    kind: str = "hstu"
    width: int = 50  # D: model width
    num_blocks: int = 2  # encoder blocks
    num_heads: int = 1  # H: attention heads
    qk_width: int = 50  # A: query and key width of a head (hstu; sasrec uses width / num_heads)
    v_width: int = 50  # V: value width of a head (hstu; sasrec uses width / num_heads)
    ffn_width: int = 50  # hidden width of the feed-forward layer (sasrec only)
    # hidden width of a SwiGLU layer after attention; 0 = no such layer (hstu, hstu_softmax)
    swiglu_width: int = 0
    bias: str = "both"  # relative attention bias: none | position | time | both (hstu only)
    window: int = 0  # tokens before itself that a token sees; 0 = no limit (hstu only)
    # retrieval: time bias from the time of the event to predict, else from the token's own
    use_query_time: bool = True
    use_actions: bool = False  # retrieval: a token is item and action, else the item alone
    head_width: int = 128  # hidden width of the ranking head
    hidden_widths: tuple = (256, 128)  # of the fully connected layers (dlrm only)
    cross_layers: int = 3  # DCN-v2 cross layers (dlrm only)
    input_dropout: float = 0.2  # after the input embeddings
    dropout: float = 0.2  # before the output projection of a block, and that of its SwiGLU
    temperature: float = 0.05  # of the dot product of L2-normalised vectors
    # float32 | bfloat16: activations and matmuls; parameters stay float32
    compute_dtype: str = "float32"
    remat: bool = False  # recompute each block in the backward pass: less memory, more time
    # one compiled block looped over depth: shorter compile for deep models
    scan_blocks: bool = False
    # attention implementation, one of ATTENTION; "" = the best that can run here (hstu only)
    attention: str = ""

    def __post_init__(self):
        check_types(self, "model.")
        check_choice("model.kind", self.kind, ("hstu", "hstu_softmax", "sasrec", "dlrm"))
        check_choice("model.bias", self.bias, ("none", "position", "time", "both"))
        check_choice("model.compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
        check_choice("model.attention", self.attention, ("", *ATTENTION))
        for name in (
            "width",
            "num_blocks",
            "num_heads",
            "qk_width",
            "v_width",
            "ffn_width",
            "head_width",
        ):
            check(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        for name in ("input_dropout", "dropout"):
            check(0 <= getattr(self, name) < 1, f"model.{name}", getattr(self, name), "in [0, 1)")
        check(self.swiglu_width >= 0, "model.swiglu_width", self.swiglu_width, "at least 0")
        check(self.window >= 0, "model.window", self.window, "at least 0; 0 is no limit")
        if self.kind != "hstu":
            check(self.window == 0, "model.window", self.window, f"0 for model.kind={self.kind}")
        if self.kind in ("sasrec", "dlrm"):
            check(
                self.swiglu_width == 0,
                "model.swiglu_width",
                self.swiglu_width,
                f"0 for model.kind={self.kind}",
            )
        check(self.temperature > 0, "model.temperature", self.temperature, "positive")
        check(self.cross_layers >= 0, "model.cross_layers", self.cross_layers, "at least 0")
        widths = len(self.hidden_widths) > 0 and all(
            type(w) is int and w >= 1 for w in self.hidden_widths
        )
        check(
            widths,
            "model.hidden_widths",
            self.hidden_widths,
            "a tuple of widths, such as (256, 128)",
        )
        if self.kind == "hstu_softmax":
            check(self.bias == "none", "model.bias", self.bias, "none for model.kind=hstu_softmax")
        if self.kind == "sasrec":
            rule = f"a multiple of model.num_heads={self.num_heads}"
            check(self.width % self.num_heads == 0, "model.width", self.width, rule)


@typing.no_type_check
@dataclass(frozen=True)
class VocabularyConfig:
    """Which rows of the item table an item has."""

    # a row for each item | hashed: rows by hashes of raw ids | admitted: own rows are earned
    kind: str = "catalogue"
    # hashed: rows of the table | admitted: rows that one item owns at a time, besides shared_rows
    rows: int = 0
    # k: independent hashes of a raw id; an item's vector is the sum of its k rows / sqrt(k)
    hashes: int = 2
    shared_rows: int = 0  # admitted: rows that items without an own one share, by their hashes
    admit_after: int = 3  # admitted: steps that name an item before it may own a row
    # admitted: steps in a row that do not name an item, after which it loses its row; 0 = never
    evict_after: int = 0
    update_every: int = 100  # admitted: steps between the moments at which rows are given and taken

    def __post_init__(self):
        check_types(self, "vocabulary.")
        check_choice("vocabulary.kind", self.kind, ("catalogue", "hashed", "admitted"))
        for name, kinds in (("rows", ("hashed", "admitted")), ("shared_rows", ("admitted",))):
            value, used = getattr(self, name), self.kind in kinds
            rule = (
                "at least 1"
                if used
                else f"0 with vocabulary.kind={self.kind}; it belongs to {' and '.join(kinds)}"
            )
            check(value >= 1 if used else value == 0, f"vocabulary.{name}", value, rule)
        for name in ("hashes", "admit_after", "update_every"):
            check(getattr(self, name) >= 1, f"vocabulary.{name}", getattr(self, name), "at least 1")
        check(self.evict_after >= 0, "vocabulary.evict_after", self.evict_after, "at least 0")

    def table_ids(self, num_items: int) -> int:
        """Rows of the item table for a catalogue of so many items, without row 0, which is padding."""
        return num_items if self.kind == "catalogue" else self.rows + self.shared_rows


@typing.no_type_check
@dataclass(frozen=True)
class LossConfig:
    """Next-item loss over the catalogue."""

    # name in data.actions that the next event must have to be a label; "" = every event is one
    positive: str = ""
    # full softmax | per_token: K negatives a token | group: K shared by a block of tokens
    kind: str = "full"
    negatives: int = 128  # K, for per_token and group
    group: int = 128  # tokens that share their K negatives, for group; divides data.row_length
    # of the negatives: uniform over the catalogue | in_batch: labels of this batch
    sampler: str = "uniform"
    # subtract the log of each item's sampling probability (only changes in_batch)
    log_q: bool = False
    chunk_tokens: int = 512  # tokens whose logits are in memory at once

    def __post_init__(self):
        check_types(self, "loss.")
        check_choice("loss.kind", self.kind, ("full", "per_token", "group"))
        check_choice("loss.sampler", self.sampler, ("uniform", "in_batch"))
        for name in ("negatives", "group", "chunk_tokens"):
            check(getattr(self, name) >= 1, f"loss.{name}", getattr(self, name), "at least 1")


@typing.no_type_check
@dataclass(frozen=True)
class RankingConfig:
    """Ranking as generation: the model predicts the actions of the next event from the past; needs data.actions."""

    # names in data.actions, and "rating" for its value (regression); () = retrieval
    tasks: tuple = ()
    weights: tuple = ()  # weight of each task in the loss; () = 1 each
    # item and action in turn | paired: the action with its item | sum: see data/tokens.py
    tokens: str = "interleave"
    # share of all events, by time, that train; from here to test_from they validate
    valid_from: float = 0.81
    test_from: float = 0.9  # share of all events, by time, before the test part

    def __post_init__(self):
        check_types(self, "ranking.")
        check_choice("ranking.tokens", self.tokens, ("interleave", "paired", "sum"))
        check(
            all(type(x) is str for x in self.tasks), "ranking.tasks", self.tasks, "a tuple of names"
        )
        check(
            len(set(self.tasks)) == len(self.tasks),
            "ranking.tasks",
            self.tasks,
            "names without repeats",
        )
        if self.weights:
            ok = len(self.weights) == len(self.tasks) and all(
                type(w) in (int, float) and w >= 0 for w in self.weights
            )
            check(
                ok,
                "ranking.weights",
                self.weights,
                f"one number for each of ranking.tasks={self.tasks}",
            )
        check(0 < self.test_from < 1, "ranking.test_from", self.test_from, "between 0 and 1")
        rule = f"above 0 and at most ranking.test_from={self.test_from}"
        check(0 < self.valid_from <= self.test_from, "ranking.valid_from", self.valid_from, rule)


@typing.no_type_check
@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, with the settings of the paper's public code; and the rule of the embedding tables."""

    learning_rate: float = 1e-3  # constant after the warm-up
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.98  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    # decoupled, on every parameter; of a row-wise table: on the rows a step touches
    weight_decay: float = 0.0
    warmup_steps: int = 0  # steps of linear warm-up from 0
    # of items and features: dense = as the rest | rowwise_adamw | rowwise_adagrad: touched rows
    table: str = "dense"
    table_learning_rate: float = 0.0  # of row-wise tables; 0 = learning_rate
    # of row-wise tables: float32 | bfloat16, updated with stochastic rounding
    table_dtype: str = "float32"

    def __post_init__(self):
        check_types(self, "optimizer.")
        for name in ("learning_rate", "eps"):
            check(getattr(self, name) > 0, f"optimizer.{name}", getattr(self, name), "positive")
        for name in ("b1", "b2"):
            check(
                0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "in [0, 1)"
            )
        check(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "at least 0")
        check(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "at least 0")
        check_choice("optimizer.table", self.table, ("dense", "rowwise_adamw", "rowwise_adagrad"))
        rate = self.table_learning_rate
        check(rate >= 0, "optimizer.table_learning_rate", rate, "at least 0")
        check_choice("optimizer.table_dtype", self.table_dtype, ("float32", "bfloat16"))
        if self.table == "dense":
            rule = "with optimizer.table=rowwise_adamw or rowwise_adagrad only"
            check(rate == 0, "optimizer.table_learning_rate", rate, rule)
            check(
                self.table_dtype == "float32",
                "optimizer.table_dtype",
                self.table_dtype,
                f"{rule}; else float32",
            )


@typing.no_type_check
@dataclass(frozen=True)
class TrainConfig:
    """Length of the training and how often it reports, validates and saves."""

    # epochs: shuffled passes | streaming: once in the order of time, each window tested first
    mode: str = "epochs"
    # streaming: windows of equally many events in the part of the log that trains
    windows: int = 20
    # streaming: seconds without an event that end a session and emit an example; not of dlrm
    session_gap: int = 3600
    # streaming: keep an example of n events with probability rate / n; 0 = all; not of dlrm
    sampling_rate: float = 0.0
    epochs: int = 101  # passes over the users
    steps: int = 0  # stop after this many steps; 0 = after `epochs`
    batch_users: int = 128  # mean users in a global batch; the rows of a batch follow from it
    log_every: int = 10  # steps between console and metrics lines
    validate_every: int = 1  # epochs between validations
    patience: int = 10  # validations without a better NDCG@10 before stopping; 0 = never stop early
    checkpoint_every: int = 500  # steps between checkpoints, besides the one after each validation

    def __post_init__(self):
        check_types(self, "train.")
        check_choice("train.mode", self.mode, ("epochs", "streaming"))
        for name in (
            "windows",
            "session_gap",
            "epochs",
            "batch_users",
            "log_every",
            "validate_every",
            "checkpoint_every",
        ):
            check(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        check(self.steps >= 0, "train.steps", self.steps, "at least 0")
        check(self.patience >= 0, "train.patience", self.patience, "at least 0")
        check(self.sampling_rate >= 0, "train.sampling_rate", self.sampling_rate, "at least 0")


@typing.no_type_check
@dataclass(frozen=True)
class EvaluateConfig:
    """Leave-one-out ranking of the whole catalogue."""

    # not ranked: history = all the user had before | visible = in the N seen | none
    exclude: str = "history"
    batch_users: int = 256  # mean users in an evaluation batch
    # retrieval: validate on a fixed random sample of this many; 0 = all. The test is on all
    valid_users: int = 0
    chunk_items: int = 65536  # catalogue items scored at once

    def __post_init__(self):
        check_types(self, "evaluate.")
        check_choice("evaluate.exclude", self.exclude, ("history", "visible", "none"))
        for name in ("batch_users", "chunk_items"):
            check(getattr(self, name) >= 1, f"evaluate.{name}", getattr(self, name), "at least 1")
        check(self.valid_users >= 0, "evaluate.valid_users", self.valid_users, "at least 0")


# The first pattern found in a parameter's path decides how it is laid out; with none it is on every device.
ShardingRules = tuple[tuple[str, tuple], ...]
# Rows of tables over all devices; wide matrices by heads over `model`, and whole on each device along `data`: with one
# device along `model` that is data parallel.
TENSOR: ShardingRules = (  # (regular expression on the parameter path, mesh axes of each dimension)
    (r"(item|feature)_table", (("data", "model"), None)),
    (r"blocks/\d+/uvqk", (None, "model")),
    (r"blocks/\d+/output/kernel", ("model", None)),
    (r"blocks/\d+/swiglu/(gate|up)", (None, "model")),
    (r"blocks/\d+/swiglu/down", ("model", None)),
)
# The same, and the other dimension of the matrices over `data`: a device holds 1 / n of them and of their moments, and
# gathers each when a block needs it (FSDP, ZeRO 3). `data` has to divide the model's width.
FSDP: ShardingRules = (
    (r"(item|feature)_table", (("data", "model"), None)),
    (r"blocks/\d+/uvqk", ("data", "model")),
    (r"blocks/\d+/output/kernel", ("model", "data")),
    (r"blocks/\d+/swiglu/(gate|up)", ("data", "model")),
    (r"blocks/\d+/swiglu/down", ("model", "data")),
    (r"blocks/\d+/\w+/kernel", ("data", None)),
)


@typing.no_type_check
@dataclass(frozen=True)
class MeshConfig:
    """The device mesh: batch rows over `data`, wide matrices over `model`, embedding rows over both."""

    data: int = 0  # devices along the batch; 0 = all devices divided by `model`
    model: int = 1  # devices along heads and projections
    # of row-wise tables' rows: gather | all_to_all (less traffic; training/row_exchange.py)
    exchange: str = "gather"
    # (pattern on the parameter path, mesh axes of each dimension); TENSOR | FSDP | own
    rules: ShardingRules = TENSOR

    def __post_init__(self):
        check_types(self, "mesh.")
        check(self.data >= 0, "mesh.data", self.data, "at least 0")
        check(self.model >= 1, "mesh.model", self.model, "at least 1")
        check_choice("mesh.exchange", self.exchange, ("gather", "all_to_all"))
        pairs = all(type(r) is tuple and [type(x) for x in r] == [str, tuple] for r in self.rules)
        check(pairs, "mesh.rules", self.rules, "pairs of a pattern and a tuple of mesh axes")


@typing.no_type_check
@dataclass(frozen=True)
class Config:
    """Everything that decides a run; written to `config.json` in the workdir."""

    seed: int = 0  # of initialisation, shuffling, dropout and negatives
    data: DataConfig = field(default_factory=DataConfig)  # raw log and layout
    model: ModelConfig = field(default_factory=ModelConfig)  # encoder
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)  # rows of the item table
    loss: LossConfig = field(default_factory=LossConfig)  # training objective of retrieval
    # tasks of ranking; with none the run is retrieval
    ranking: RankingConfig = field(default_factory=RankingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # AdamW
    train: TrainConfig = field(default_factory=TrainConfig)  # schedule
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)  # protocol
    mesh: MeshConfig = field(default_factory=MeshConfig)  # devices

    def __post_init__(self):
        check_types(self)
        check(0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2^32)")
        if self.loss.kind == "group":
            rule = f"a divisor of data.row_length={self.data.row_length}"
            check(self.data.row_length % self.loss.group == 0, "loss.group", self.loss.group, rule)
        self._check_ranking()
        full = self.loss.kind == "full" and not self.ranking.tasks
        rule = "dense with loss.kind=full, which touches every row; set loss.kind=group or per_token for a row-wise rule"
        check(
            not full or self.optimizer.table == "dense",
            "optimizer.table",
            self.optimizer.table,
            rule,
        )
        if self.mesh.data:
            users, rule = self.train.batch_users, f"at least mesh.data={self.mesh.data}"
            check(users >= self.mesh.data, "train.batch_users", users, rule)

    def _check_ranking(self) -> None:
        names = [action.partition("=")[0].strip() for action in self.data.actions]
        for task in self.ranking.tasks:
            check_choice("ranking.tasks", task, [*names, "rating"])
        if self.loss.positive:
            check_choice("loss.positive", self.loss.positive, names)
        needs, kinds = "retrieval", ("hstu", "hstu_softmax", "sasrec")
        if self.ranking.tasks:
            needs, kinds = "ranking", ("hstu", "dlrm")
        check(
            self.model.kind in kinds,
            "model.kind",
            self.model.kind,
            f"one of {', '.join(kinds)} for {needs}",
        )
        streaming = self.train.mode == "streaming"
        check(
            not streaming or bool(self.ranking.tasks),
            "train.mode",
            self.train.mode,
            "epochs for retrieval",
        )
        self._check_without_effect()

    def _check_without_effect(self) -> None:
        """Settings that a run of this kind would ignore."""
        streaming, dlrm = self.train.mode == "streaming", self.model.kind == "dlrm"
        alpha = self.data.stochastic_length_alpha
        where = "model.kind=dlrm" if dlrm else "train.mode=streaming"
        rule = f"2 (off) with {where}; it cuts epochs of a sequence model"
        check(alpha == 2 or not (streaming or dlrm), "data.stochastic_length_alpha", alpha, rule)
        for name in ("sampling_rate", "session_gap"):
            value, default = getattr(self.train, name), getattr(TrainConfig, name)
            rule = f"{default}, its default, with model.kind=dlrm, which streams events and not sessions"
            check(value == default or not (streaming and dlrm), f"train.{name}", value, rule)
        valid_users, rule = (
            self.evaluate.valid_users,
            "0 for ranking, which judges all events of the validation part",
        )
        check(valid_users == 0 or not self.ranking.tasks, "evaluate.valid_users", valid_users, rule)


class UnknownVariant(ConfigError):
    """The part of `--config` after the file name means nothing to the file."""


def unknown_variant(variant: str, variants: Sequence[str]) -> UnknownVariant:
    """The error a config file raises for a variant it does not have."""
    hint = difflib.get_close_matches(variant, variants, 1)
    did_you_mean = f"; did you mean {hint[0]!r}?" if hint else ""
    return UnknownVariant(
        f"--config: no variant {variant!r}, only {', '.join(variants)}{did_you_mean}"
    )
