"""What baselines are asked: the held-out events of a split, the ranks of their items, and lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy import sparse

from gr_jax.data.batches.packing import token_index

GROUP = 64  # scores of which the maximum is looked at first
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


@dataclass(frozen=True)
class SparseScores:
    """Scores by `base` of an item plus a sparse score of question and item.

    Ranks cost what the sparse scores have entries, whatever the size of the catalogue.
    """

    base: Float[np.ndarray, " X1"]  # of each item id, the same for all questions
    # questions -> [Q, X + 1], float64, of which most entries are absent: 0
    score: Callable[[Questions], sparse.csr_array]
    block: int = 4096  # questions whose scores are in memory at a time

    def dense(self, part: Questions) -> Float[np.ndarray, "Q X1"]:
        """The score of every question and item."""
        return self.score(part).toarray() + self.base

    def ranks(self, questions: Questions) -> Float[np.ndarray, " Q"]:
        """Ranked items that score at least as high as the held-out one, itself included.

        inf where it is among the items that are not ranked.
        """
        base, in_order = self.base, np.sort(self.base[1:])
        ranks = [np.zeros(0)]
        for part in questions.blocks(self.block):
            scores, asked = self.score(part).tocoo(), part.asked
            owner, item, value = (
                scores.row.astype(np.int64),
                scores.col.astype(np.int64),
                scores.data,
            )
            target_score = base[asked]
            found = item == asked[owner]
            target_score[owner[found]] = base[asked[owner[found]]] + value[found]

            # By the base alone; then the difference that the sparse scores make, and what is
            # removed.
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


@dataclass(frozen=True)
class DenseScores:
    """Scores of every question and item."""

    dense: Callable[[Questions], Float32[np.ndarray, "Q X1"]]

    def ranks(self, questions: Questions) -> Float[np.ndarray, " Q"]:
        """Ranks of the held-out items, as those of `SparseScores`."""
        ranks = [np.zeros(0)]
        for part in questions.blocks(max(1, SCORES // (questions.num_items + 1))):
            scores, asked = self.dense(part), part.asked
            target_score = np.take_along_axis(scores, asked[:, None], axis=1)
            owner, item = part.removed()
            scores[owner, item] = -np.inf
            rank = (scores[:, 1:] >= target_score).sum(1).astype(np.float64)
            rank[owner[item == asked[owner]]] = np.inf
            ranks.append(rank)
        return np.concatenate(ranks)


Scores = SparseScores | DenseScores


def best_items(questions: Questions, scores: Scores, k: int = 10) -> Int[np.ndarray, "Q {k}"]:
    """The k ranked items with the highest scores, best first; 0 where there are fewer.

    Costs questions times catalogue.
    """
    best = [np.zeros((0, k), np.int64)]
    for part in questions.blocks(max(1, SCORES // (questions.num_items + 1))):
        score = scores.dense(part)
        owner, item = part.removed()
        score[owner, item] = -np.inf
        score[:, 0] = -np.inf
        # The k best are in the k groups with the highest maxima: most scores are only looked at.
        apart = score.shape[1] // GROUP  # columns between the members of a group
        rest = np.arange(apart * GROUP, score.shape[1])
        maxima = score[:, : apart * GROUP].reshape(len(score), GROUP, apart).max(1)
        group = _largest(maxima, k)
        near = (group[:, :, None] + apart * np.arange(GROUP)).reshape(len(score), -1)
        near = np.hstack([near, np.broadcast_to(rest, (len(score), len(rest)))])
        value = np.take_along_axis(score, near, axis=1)
        top = _largest(value, k)
        ids, value = (np.take_along_axis(table, top, axis=1) for table in (near, value))
        order = np.lexsort((ids, -value), axis=1)
        ids = np.take_along_axis(np.where(value > -np.inf, ids, 0), order, axis=1)
        best.append(np.pad(ids, ((0, 0), (0, k - ids.shape[1]))))
    return np.concatenate(best)


def _largest(values: Float[np.ndarray, "Q n"], k: int) -> Int[np.ndarray, "Q m"]:
    """Columns of the k largest values of each row, in any order; all if there are fewer."""
    if values.shape[1] <= k:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.argpartition(values, -k, axis=1)[:, -k:]


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
