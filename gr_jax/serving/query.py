"""Checked requests, and what a retriever and a ranker have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

from gr_jax.serving.history import History

Items = Int32[np.ndarray, " _"]


@dataclass(frozen=True)
class Query:
    """A request for the k best items, or for scores of candidates."""

    history: History
    k: int = 0
    removed: Items = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    allowed: Items | None = None  # the only items that may come; None = all
    task: int = 0  # ranking: whose prediction orders the items
    candidates: Items | None = None  # to be scored, in their order; None = the k best


@dataclass(frozen=True)
class Scored:
    """Items of an answer, best first or in the order of the candidates."""

    ids: Int32[np.ndarray, " M"]
    scores: Float32[np.ndarray, " M"]
    predictions: Float32[np.ndarray, "M Y"] | None = None  # ranking: by task


@dataclass(frozen=True)
class Counters:
    """Work of a cache since it was made, and its contents."""

    hits: int = 0  # histories found, at most their newest tokens were computed
    misses: int = 0  # histories computed from their first token on
    evictions: int = 0  # entries given up for the budget
    appended: int = 0  # tokens appended to entries
    entries: int = 0  # entries now
    bytes: int = 0  # of the entries now


@runtime_checkable
class Cache(Protocol):
    """A cache of histories, as seen from outside."""

    @property
    def counters(self) -> Counters:
        """A snapshot."""
        ...

    def clear(self) -> None:
        """Drop all entries; the counters go on."""
        ...


@runtime_checkable
class Answerer(Protocol):
    """A model that answers queries: `Retriever` or `Ranker`."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Labels that ranking predicts, in order; () in retrieval."""
        ...

    @property
    def cache(self) -> Cache | None:
        """The cache of histories, if there is one."""
        ...

    def can_answer(self, query: Query) -> bool:
        """True if the history holds enough for an answer by the model."""
        ...

    def work(self, query: Query) -> float:
        """Tokens that an answer computes at most, or as many as take its time; at least 1."""
        ...

    def answer(self, queries: Sequence[Query]) -> list[Scored]:
        """The answers, computed together; each is what it would be alone."""
        ...

    def warm_up(self, *, max_queries: int, max_k: int, max_candidates: int) -> None:
        """Compile everything that calls up to these sizes need."""
        ...

    def description(self) -> str:
        """What answers, for the line that a server prints."""
        ...
