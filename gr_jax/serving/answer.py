"""What a model answers to a request for one history."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from gr_jax.serving.popular import Source


@dataclasses.dataclass(frozen=True)
class Item:
    """An item of an answer."""

    item: str  # raw id
    title: str | None
    # retrieval: cosine, with item-kNN where the run adds it; ranking: prediction of the task that
    # orders; popularity: share of events
    score: float
    tasks: dict[str, float] | None = None  # ranking: the prediction for each task


@dataclasses.dataclass(frozen=True)
class Answer:
    """Items, best first, or in the order of the candidates."""

    items: tuple[Item, ...]
    source: Source  # popularity: no item of the history is known
    skipped: int  # events of the history whose item the catalogue does not have

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)
