"""What baselines are asked: the held-out events of a split, and the ranks of their items."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy import sparse

from gr_jax.data.batches.packing import token_index

SCORES = 1 << 24  # scores of one block of questions that are in memory at a time


class Questions(NamedTuple):
    """The held-out events of some users, by flat indices of the events of a dataset."""

    item: Int[np.ndarray, " E"]  # item ids of all events, 1..X
    begin: Int[np.ndarray, " Q"]  # first event of the history that a recommender sees
    seen_from: Int[np.ndarray, " Q"]  # first event whose item is not ranked
    target: Int[np.ndarray, " Q"]  # the held-out event, which ends the history
    num_items: int  # X

    @property
    def asked(self) -> Int[np.ndarray, " Q"]:
        """The held-out items."""
        return self.item[self.target]

    def histories(self, recency: float = 1.0) -> sparse.csr_array:
        """[Q, X + 1], `recency ** steps` for the items of a history, 0 steps being the last event.

        An item that occurs several times counts once, by its last event.
        """
        owner, event = _ranges(self.begin, self.target)
        _, last = np.unique(
            (owner * (self.num_items + 1) + self.item[event])[::-1], return_index=True
        )
        last = len(event) - 1 - last
        owner, event = owner[last], event[last]
        weight = np.power(np.float32(recency), self.target[owner] - 1 - event, dtype=np.float32)
        shape = len(self.target), self.num_items + 1
        return sparse.csr_array((weight, (owner, self.item[event])), shape=shape)

    def removed(self) -> Int[np.ndarray, "2 S"]:
        """Pairs (question, item) that are not ranked, each once, in order."""
        owner, event = _ranges(self.seen_from, self.target)
        pair = np.unique(owner * (self.num_items + 1) + self.item[event])
        return np.stack(np.divmod(pair, self.num_items + 1))

    def blocks(self, size: int) -> Iterator[Questions]:
        """The questions in parts of `size`."""
        for first in range(0, len(self.target), size):
            part = slice(first, first + size)
            yield self._replace(
                begin=self.begin[part], seen_from=self.seen_from[part], target=self.target[part]
            )


def sparse_ranks(
    questions: Questions,
    base: Float[np.ndarray, " X1"],
    score: Callable[[Questions], sparse.csr_array],
    *,
    block: int = 4096,
) -> Float[np.ndarray, " Q"]:
    """Ranks of the held-out items by `base` of an item plus a sparse score of question and item.

    Costs what the sparse scores have entries, whatever the size of the catalogue.

    Args:
      questions: the held-out events.
      base: a score for each item id that is the same for all questions.
      score: questions -> [Q, X + 1], float64, of which most entries are absent: 0.
      block: questions whose scores are in memory at a time.

    Returns:
      Ranked items that score at least as high as the held-out one, itself included; inf where it
      is among the items that are not ranked.
    """
    in_order = np.sort(base[1:])
    ranks = [np.zeros(0)]
    for part in questions.blocks(block):
        scores, asked = score(part).tocoo(), part.asked
        owner, item, value = scores.row.astype(np.int64), scores.col.astype(np.int64), scores.data
        target_score = base[asked]
        found = item == asked[owner]
        target_score[owner[found]] = base[asked[owner[found]]] + value[found]

        # By the base alone; then the difference that the sparse scores make, and what is removed.
        rank = len(in_order) - np.searchsorted(in_order, target_score).astype(np.float64)
        by_base = base[item] >= target_score[owner]
        by_both = base[item] + value >= target_score[owner]
        removed_owner, removed_item = part.removed()
        width = len(base)
        gone = _is_in(owner * width + item, removed_owner * width + removed_item)
        change = np.where(gone, 0, by_both.astype(np.int64) - by_base)
        rank += np.bincount(owner, change, minlength=len(asked))
        above = base[removed_item] >= target_score[removed_owner]
        rank -= np.bincount(removed_owner[above], minlength=len(asked))
        rank[removed_owner[removed_item == asked[removed_owner]]] = np.inf
        ranks.append(rank)
    return np.concatenate(ranks)


def dense_ranks(
    questions: Questions, score: Callable[[Questions], Float32[np.ndarray, "Q X1"]]
) -> Float[np.ndarray, " Q"]:
    """Ranks of the held-out items by a score of every question and item, as `sparse_ranks`."""
    ranks = [np.zeros(0)]
    for part in questions.blocks(max(1, SCORES // (questions.num_items + 1))):
        scores, asked = score(part), part.asked
        target_score = np.take_along_axis(scores, asked[:, None], axis=1)
        owner, item = part.removed()
        scores[owner, item] = -np.inf
        rank = (scores[:, 1:] >= target_score).sum(1).astype(np.float64)
        rank[owner[item == asked[owner]]] = np.inf
        ranks.append(rank)
    return np.concatenate(ranks)


def _ranges(
    begin: Int[np.ndarray, " Q"], end: Int[np.ndarray, " Q"]
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"]]:
    """Question and flat index of the events begin : end of each."""
    length = end - begin
    return np.repeat(np.arange(len(begin)), length), token_index(begin, length)


def _is_in(pair: Int[np.ndarray, " n"], ascending: Int[np.ndarray, " S"]) -> np.ndarray:
    """[n] bool: faster than `np.isin`, which sorts both."""
    place = np.minimum(np.searchsorted(ascending, pair), len(ascending) - 1)
    return ascending[place] == pair if len(ascending) else np.zeros(len(pair), bool)
