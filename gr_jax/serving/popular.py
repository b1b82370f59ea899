"""The most frequent items, which answer where a history holds nothing that the model knows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64

from gr_jax.data.dataset import Dataset
from gr_jax.serving.query import Answerer, Query, Scored

Source = Literal["model", "popularity"]


class PopularItems:
    """The items of a log by their number of events."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    @functools.cached_property
    def counts(self) -> Int64[np.ndarray, " X1"]:
        """Events of each item in the log; of the padding 0."""
        return np.bincount(self.dataset.events.item, minlength=self.dataset.num_items + 1)

    @functools.cached_property
    def in_order(self) -> Int32[np.ndarray, " X"]:
        """The items, the most frequent first, of equal ones the smaller id."""
        return (np.argsort(-self.counts[1:], kind="stable") + 1).astype(np.int32)

    def answer(self, query: Query) -> Scored:
        """The answer to a request, whose scores are shares of all events."""
        ids = query.candidates
        if ids is None:
            ids = self.in_order
            if query.allowed is not None:
                ids = ids[np.isin(ids, query.allowed)]
            ids = ids[: query.k + len(query.removed)]
            ids = ids[~np.isin(ids, query.removed)][: query.k]
        share = self.counts[ids] / max(1, self.dataset.num_events)
        return Scored(ids, share.astype(np.float32))


def answer_all(
    queries: Sequence[Query], answerer: Answerer, popular: PopularItems
) -> list[tuple[Scored, Source]]:
    """The answers to requests, by the model where it can, and who gave each."""
    by_model = [i for i, query in enumerate(queries) if answerer.can_answer(query)]
    computed = answerer.answer([queries[i] for i in by_model]) if by_model else []
    scored = dict(zip(by_model, computed, strict=True))
    return [
        (scored[i], "model") if i in scored else (popular.answer(query), "popularity")
        for i, query in enumerate(queries)
    ]
