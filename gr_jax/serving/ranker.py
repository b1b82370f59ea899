"""Ranking: histories and candidates -> what the user would do with each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from gr_jax.data.batches import impressions
from gr_jax.data.batches.batch import Batch, Impressions
from gr_jax.serving import buckets, rows
from gr_jax.serving.history import History, sequences, warm_up_history
from gr_jax.serving.query import Cache, Items, Query, Scored
from gr_jax.serving.rows import RowMaker

BLOCK = 256  # candidates of one row, or of one call of a model without sequences


def block_size(num_items: int) -> int:
    """Candidates of a block: no more than a small catalogue has."""
    return max(8, min(BLOCK, 1 << (num_items - 1).bit_length()))


@runtime_checkable
class Predictor(Protocol):
    """Histories and candidates -> predictions; with a cache or without."""

    maker: RowMaker  # of the rows of histories

    @property
    def cache(self) -> Cache | None:
        """The cache of histories, if there is one."""
        ...

    def __call__(
        self, histories: Sequence[History], candidates: Sequence[Items]
    ) -> list[Float32[np.ndarray, "M Y"]]:
        """Predictions for the candidates of each history, by task."""
        ...

    def warm_up(self, *, max_blocks: int) -> None:
        """Compile everything that calls with up to this many blocks of candidates need."""
        ...


class Ranker:
    """Answers by the predictions of one task for the candidates, or for the whole catalogue.

    Attributes:
      predictor: of the model. tasks: labels that it predicts, in order.
    """

    def __init__(self, predictor: Predictor, tasks: tuple[str, ...], *, num_items: int, block: int):
        """`block`: candidates of a block of the predictor."""
        self.predictor, self.tasks = predictor, tasks
        self.block, self._items = block, np.arange(1, num_items + 1, dtype=np.int32)

    @property
    def cache(self) -> Cache | None:
        """The cache of histories, if there is one."""
        return self.predictor.cache

    def can_answer(self, query: Query) -> bool:
        """True if the history holds an event, or there are candidates to predict without one."""
        return len(query.history) > 0 or query.candidates is not None

    def work(self, query: Query) -> float:
        """Tokens of the history, and one for each candidate."""
        candidates = query.allowed if query.candidates is None else query.candidates
        count = len(self._items if candidates is None else candidates)
        return 1.0 + self.predictor.maker.max_tokens(query.history) + count

    def answer(self, queries: Sequence[Query]) -> list[Scored]:
        """The answers, computed together; each is what it would be alone."""
        choices = [self._choice(query) for query in queries]
        predictions = self.predictor([query.history for query in queries], choices)
        answers = []
        for query, ids, prediction in zip(queries, choices, predictions, strict=True):
            if query.candidates is None:
                order = np.argsort(-prediction[:, query.task], kind="stable")[: query.k]
                ids, prediction = ids[order], prediction[order]
            answers.append(Scored(ids, prediction[:, query.task], prediction))
        return answers

    def _choice(self, query: Query) -> Int32[np.ndarray, " M"]:
        """The candidates, or the items that may come."""
        if query.candidates is not None:
            return query.candidates
        ids = self._items if query.allowed is None else query.allowed
        return ids[~np.isin(ids, query.removed)]

    def warm_up(self, *, max_queries: int, max_k: int, max_candidates: int) -> None:
        """Compile everything that calls up to these sizes need."""
        self.predictor.warm_up(max_blocks=max(max_queries, -(-max_candidates // self.block)))

    def description(self) -> str:
        """What answers, for the line that a server prints."""
        return f"tasks {', '.join(self.tasks)}"


class SequencePredictor:
    """Candidates behind the history, a block of them a row; nothing is kept.

    A candidate sees the history and itself, so its score does not depend on others of its block.
    """

    cache = None

    def __init__(
        self,
        predict: Callable[[Batch], Array],
        maker: RowMaker,
        *,
        block: int,
        lengths: tuple[int, ...] = (),
    ):
        """`predict`: rows -> [R, L, Y]; `block`: candidates of a row; `lengths`: of histories.

        `lengths` are tokens that a row has room for before its candidates; () = powers of two.
        """
        self._predict, self.maker, self.block = predict, maker, block
        self.lengths = lengths or buckets.lengths(maker.scheme.max_tokens(maker.max_events))

    def __call__(
        self, histories: Sequence[History], candidates: Sequence[Items]
    ) -> list[Float32[np.ndarray, "M Y"]]:
        """Predictions for the candidates of each history, by task."""
        blocks = [
            (owner, items[start : start + self.block])
            for owner, items in enumerate(candidates)
            for start in range(0, len(items), self.block)
        ]
        # Neighbours in the order of lengths share a bucket; stable, so those of an owner stay so.
        blocks.sort(key=lambda block: len(histories[block[0]]))
        nothing = np.zeros((0, len(self.maker.scheme.tasks)), np.float32)
        found: list[list[np.ndarray]] = [[nothing] for _ in histories]
        for part in buckets.parts(len(blocks), buckets.ROWS[1]):
            owners, items = zip(*blocks[part], strict=True)
            batch, first = self._rows([histories[owner] for owner in owners], items)
            predictions = np.asarray(self._predict(batch))
            for row, owner in enumerate(owners):
                found[owner].append(predictions[row, first[row] : first[row] + len(items[row])])
        return [np.concatenate(parts) for parts in found]

    def _rows(
        self, histories: Sequence[History], candidates: Sequence[Items], min_length: int = 1
    ) -> tuple[Batch, Int[np.ndarray, " B"]]:
        return candidate_rows(
            histories,
            candidates,
            self.maker,
            block=self.block,
            lengths=self.lengths,
            min_length=min_length,
        )

    def warm_up(self, *, max_blocks: int) -> None:
        """Compile every bucket of calls with up to this many blocks of candidates."""
        history = warm_up_history(self.maker.dataset)
        for length in self.lengths:
            for count in buckets.rows_up_to(min(max_blocks, buckets.ROWS[1])):
                batch, _ = self._rows([history] * count, [np.ones(1, np.int32)] * count, length)
                jax.block_until_ready(self._predict(batch))


def candidate_rows(
    histories: Sequence[History],
    candidates: Sequence[Items],
    maker: RowMaker,
    *,
    block: int,
    lengths: tuple[int, ...],
    min_length: int = 1,
) -> tuple[Batch, Int[np.ndarray, " B"]]:
    """Padded rows of one history and its candidates, and the column of each first candidate.

    Args:
      histories: histories.
      candidates: at most `block` item ids for each.
      maker: of the run.
      block: candidates that a row has room for.
      lengths: tokens of history that a row has room for; the smallest that fits is taken.
      min_length: at least this.
    """
    past, asked = maker.with_candidates(histories, candidates)
    first = np.array([rows.length(row) for row in past])
    room = buckets.fitting(lengths, max(min_length, int(first.max()))) + block
    whole = [rows.join(*pair) for pair in zip(past, asked, strict=True)]
    num_rows = buckets.fitting(buckets.ROWS, len(whole))
    batch = rows.stack(whole, num_rows=num_rows, row_length=room)
    target = np.zeros((num_rows, room), bool)
    for row, items in enumerate(candidates):
        target[row, first[row] : first[row] + len(items)] = True
    return dataclasses.replace(batch, target=target), first


class ImpressionPredictor:
    """Candidates with the history before each, for a model without sequences (kind="dlrm")."""

    cache = None

    def __init__(
        self,
        predict: Callable[[Impressions], Array],
        maker: RowMaker,
        *,
        block: int,
        entries: int,
    ):
        """`predict`: impressions -> [B, Y]; `entries`: entries of the model's item table."""
        self._predict, self.maker, self.block = predict, maker, block
        features = impressions.item_feature_table(maker.dataset, entries)
        self._item_features = None if features is None else jax.device_put(features)

    def __call__(
        self, histories: Sequence[History], candidates: Sequence[Items]
    ) -> list[Float32[np.ndarray, "M Y"]]:
        """Predictions for the candidates of each history, by task."""
        maker = self.maker
        events, spans = sequences(
            histories, maker.dataset, max_length=maker.max_events, with_asked=True
        )
        questions = impressions.fill_impressions(
            events,
            maker.dataset.catalogue,
            np.array(spans.last_event),
            maker.scheme,
            size=len(spans),
            max_length=maker.max_events,
        )
        item = np.concatenate([*candidates, np.zeros(0, np.int32)]).astype(np.int32)
        owner = np.repeat(np.arange(len(histories)), [len(items) for items in candidates])
        predictions = [np.zeros((0, len(maker.scheme.tasks)), np.float32)]
        for start in range(0, len(item), self.block):
            part = slice(start, start + self.block)
            block = self._block(questions, owner[part], item[part])
            predictions.append(np.asarray(self._predict(block))[: len(item[part])])
        ends = np.cumsum([len(items) for items in candidates])[:-1]
        return np.split(np.concatenate(predictions), ends)

    def _block(self, questions: Impressions, owner: np.ndarray, item: np.ndarray) -> Impressions:
        """The questions of the owners about the items, padded to a block."""
        missing = self.block - len(item)
        row = np.pad(owner, (0, missing))
        return dataclasses.replace(
            questions,
            item=np.pad(item, (0, missing)),
            user_features=(
                None if questions.user_features is None else questions.user_features[row]
            ),
            history_item=questions.history_item[row],
            history_action=questions.history_action[row],
            history_age=questions.history_age[row],
            outcome=questions.outcome[row],
            outcome_weight=questions.outcome_weight[row],
            catalogue_features=self._item_features,
        )

    def warm_up(self, *, max_blocks: int) -> None:
        """Compile the program: there is one, for blocks of candidates."""
        self([warm_up_history(self.maker.dataset)], [np.ones(1, np.int32)])
