"""Fields of the objectives: the loss of retrieval, the tasks of ranking, and their evaluation."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from gr_jax.config.checks import (
    check,
    check_at_least,
    check_choice,
    check_types,
    unix_seconds,
)

# fields of EvaluateConfig that split=time alone has a use for
MOMENTS = ("valid_from", "test_from", "valid_time", "test_time")


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
    # share of a label that is spread evenly over the catalogue; with full only. Small logs gain
    smoothing: float = 0.0
    chunk_tokens: int = 512  # tokens whose logits are in memory at once

    def __post_init__(self):
        check_types(self, "loss.")
        check(0 <= self.smoothing < 1, "loss.smoothing", self.smoothing, "in [0, 1)")
        rule = "0 without loss.kind=full"
        check(self.smoothing == 0 or self.kind == "full", "loss.smoothing", self.smoothing, rule)
        check_choice("loss.kind", self.kind, ("full", "per_token", "group"))
        check_choice("loss.sampler", self.sampler, ("uniform", "in_batch"))
        check_at_least(1, self, "loss.", "negatives", "group", "chunk_tokens")


@typing.no_type_check
@dataclass(frozen=True)
class RankingConfig:
    """Ranking as generation: the actions of the next event from the past; needs `data.actions`."""

    # names in data.actions, and "rating" for its value (regression); () = retrieval
    tasks: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()  # weight of each task in the loss; () = 1 each
    # interleave: item, action, item, .. | paired: action with its item | sum: one token an event
    tokens: str = "interleave"
    # share of all events, by time, that train; from here to test_from they validate
    valid_from: float = 0.81
    test_from: float = 0.9  # share of all events, by time, before the test part

    def __post_init__(self):
        check_types(self, "ranking.")
        check_choice("ranking.tokens", self.tokens, ("interleave", "paired", "sum"))
        tasks, weights = self.tasks, self.weights
        check(all(type(x) is str for x in tasks), "ranking.tasks", tasks, "a tuple of names")
        check(len(set(tasks)) == len(tasks), "ranking.tasks", tasks, "names without repeats")
        if weights:
            ok = len(weights) == len(tasks) and all(
                type(weight) in (int, float) and weight >= 0 for weight in weights
            )
            check(ok, "ranking.weights", weights, f"one number for each of ranking.tasks={tasks}")
        check(0 < self.test_from < 1, "ranking.test_from", self.test_from, "between 0 and 1")
        rule = f"above 0 and at most ranking.test_from={self.test_from}"
        check(0 < self.valid_from <= self.test_from, "ranking.valid_from", self.valid_from, rule)


@typing.no_type_check
@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation of retrieval over the whole catalogue; docs/evaluation.md helps to choose."""

    # leave_one_out: each user's last event tests, the one before validates | time: two moments
    # for all users; each user's first event after the later one tests
    split: str = "leave_one_out"
    # split=time: share of all events, by time, that train; from here to the test they validate
    valid_from: float = 0.8
    test_from: float = 0.9  # split=time: share of all events, by time, before the test
    # split=time: where validation and test begin instead, such as "2024-05-01" or
    # "2024-05-01T12:00:00+02:00"; UTC without a zone; "" = by the share
    valid_time: str = ""
    test_time: str = ""  # as valid_time
    # items left out: history = all that the user had before | visible = those in the N seen | none
    exclude: str = "history"
    # K of further hr@K and ndcg@K, such as (5, 20), beside 1, 10, 50 and 200
    at: tuple[int, ...] = ()
    batch_users: int = 256  # mean users in an evaluation batch
    # retrieval: users of the fixed random sample that validates; 0 = all. The test is on all
    valid_users: int = 0
    chunk_items: int = 65536  # catalogue items scored at once

    def __post_init__(self):
        check_types(self, "evaluate.")
        check_choice("evaluate.split", self.split, ("leave_one_out", "time"))
        self._check_moments()
        check_choice("evaluate.exclude", self.exclude, ("history", "visible", "none"))
        ok = all(type(k) is int and k >= 1 for k in self.at)
        check(ok, "evaluate.at", self.at, "a tuple of whole numbers of at least 1, such as (5, 20)")
        check_at_least(1, self, "evaluate.", "batch_users", "chunk_items")
        check_at_least(0, self, "evaluate.", "valid_users")

    def _check_moments(self) -> None:
        for name in MOMENTS:
            value, default = getattr(self, name), getattr(EvaluateConfig, name)
            ok, rule = self.split == "time" or value == default, "with evaluate.split=time only"
            check(ok, f"evaluate.{name}", value, f"{rule}; else {default!r}, its default")
        for name in ("valid_time", "test_time"):
            text = getattr(self, name)
            ok, rule = text == "" or unix_seconds(text) is not None, "a time such as 2024-05-01"
            check(ok, f"evaluate.{name}", text, f'{rule} or 2024-05-01T12:00:00, or ""')
        check(0 < self.test_from < 1, "evaluate.test_from", self.test_from, "between 0 and 1")
        rule = f"above 0 and below evaluate.test_from={self.test_from}"
        check(0 < self.valid_from < self.test_from, "evaluate.valid_from", self.valid_from, rule)
