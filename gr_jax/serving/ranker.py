"""Histories and candidates -> what the user would do with each, by one compiled program for each bucket (ranking)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from gr_jax.data.batches import impressions
from gr_jax.data.batches.batch import Batch, Impressions
from gr_jax.data.batches.tokenizer import TokenScheme
from gr_jax.data.dataset import Dataset
from gr_jax.serving import buckets
from gr_jax.serving.encoder import first_item
from gr_jax.serving.history import History, one_a_row, sequences

BLOCK = 256  # candidates of one row, or of one call of a model without sequences

# (parameters, batch) -> predictions [R, L, Y] or [B, Y]: probabilities, and numbers where the task is a rating
Rank = Callable[[Any, Any], Float[Array, "*T Y"]]


def block_of(num_items: int) -> int:
    """Candidates of a block: no more than a small catalogue has."""
    return max(8, min(BLOCK, 1 << (num_items - 1).bit_length()))


class SequenceRanker:
    """Candidates behind the history, a block of them a row; the history is computed anew for each block.

    A candidate is the token that its item would be at the time asked about. It sees the history and itself, so its
    score does not depend on the others of its block.
    """

    def __init__(
        self,
        rank: Rank,
        params: Any,
        dataset: Dataset,
        scheme: TokenScheme,
        *,
        max_length: int,
        block: int,
        lengths: tuple[int, ...] = (),
    ):
        """`max_length`: most events of a training sequence, the one asked about included.

        `block`: candidates of a row; `lengths`: tokens of history that a row has room for; () = powers of two.
        """
        self._rank, self._params, self.block = rank, params, block
        self.dataset, self.scheme, self.visible = dataset, scheme, max_length - 1
        self.lengths = lengths or buckets.lengths(scheme.max_tokens(self.visible))

    def __call__(
        self, histories: Sequence[History], candidates: Sequence[Int32[np.ndarray, " _"]]
    ) -> list[Float32[np.ndarray, "M Y"]]:
        """Predictions for the candidates of each history, by task."""
        blocks = [
            (owner, items[start : start + self.block])
            for owner, items in enumerate(candidates)
            for start in range(0, len(items), self.block)
        ]
        blocks.sort(
            key=lambda block: len(histories[block[0]])
        )  # stable: neighbours share a bucket of lengths
        num_tasks = len(self.scheme.tasks)
        found: list[list[np.ndarray]] = [[np.zeros((0, num_tasks), np.float32)] for _ in histories]
        for part in buckets.parts(len(blocks), buckets.ROWS[1]):
            owners, items = zip(*blocks[part], strict=True)
            batch, column = self.rows([histories[owner] for owner in owners], items)
            predictions = np.asarray(self._rank(self._params, batch))
            for row, owner in enumerate(owners):
                first = column[row]
                found[owner].append(predictions[row, first : first + len(items[row])])
        return [np.concatenate(parts) for parts in found]

    def rows(
        self,
        histories: Sequence[History],
        candidates: Sequence[Int32[np.ndarray, " _"]],
        *,
        least: int = 1,
    ) -> tuple[Batch, Int[np.ndarray, " B"]]:
        """Padded rows of one history and its at most `block` candidates, and the column of each first candidate.

        `least`: fewest tokens of history that a row has room for.
        """
        # The event asked about is one token; in the stream of items and actions that of its action does not exist yet.
        per_event = self.scheme.tokens_per_event
        num_rows = buckets.fitting(buckets.ROWS, len(histories))
        batch, count = one_a_row(
            histories,
            self.dataset,
            self.scheme,
            max_length=self.visible,
            with_asked=True,
            num_rows=num_rows,
            room=lambda longest: (
                buckets.fitting(self.lengths, max(least, longest - per_event)) + self.block
            ),
        )
        before, length = count - per_event, batch.item.shape[1]
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        target = np.zeros((num_rows, length), bool)
        for row, items in enumerate(candidates):
            first, last = before[row], before[row] + len(items)
            for name in ("time", "query_time", "position", "segment", "action"):
                if (
                    fields[name] is not None
                ):  # all candidates stand at the place of the event asked about
                    fields[name][row, first:last], fields[name][row, last:] = (
                        fields[name][row, first],
                        0,
                    )
            fields["item"][row, first:last] = items
            if fields["item_features"] is not None:
                assert self.dataset.catalogue.item_features is not None
                fields["item_features"][row, first:last] = self.dataset.catalogue.item_features[
                    items
                ]
            target[row, first:last] = True
        return Batch(**fields | {"target": target, "outcome": None, "outcome_weight": None}), before

    def warm_up(self, *, most_rows: int) -> None:
        """Compiles every bucket of calls with up to `most_rows` blocks of candidates."""
        history = first_item(self.dataset)
        for length in self.lengths:
            for rows in buckets.rows_up_to(min(most_rows, buckets.ROWS[1])):
                batch, _ = self.rows([history] * rows, [np.ones(1, np.int32)] * rows, least=length)
                jax.block_until_ready(self._rank(self._params, batch))


class ImpressionRanker:
    """Candidates with the history before each, for a model without sequences (config.model.kind="dlrm")."""

    def __init__(
        self,
        rank: Rank,
        params: Any,
        dataset: Dataset,
        scheme: TokenScheme,
        *,
        max_length: int,
        block: int,
        table_rows: int,
    ):
        """`max_length`: events of a history; `table_rows`: rows of the model's table of items."""
        self._rank, self._params, self.block = rank, params, block
        self.dataset, self.scheme, self.max_length = dataset, scheme, max_length
        self._item_features = impressions.item_feature_table(dataset, table_rows)
        self._item_features = (
            None if self._item_features is None else jax.device_put(self._item_features)
        )

    def __call__(
        self, histories: Sequence[History], candidates: Sequence[Int32[np.ndarray, " _"]]
    ) -> list[Float32[np.ndarray, "M Y"]]:
        """Predictions for the candidates of each history, by task."""
        events, spans = sequences(
            histories, self.dataset, max_length=self.max_length, with_asked=True
        )
        questions = impressions.fill_impressions(
            events,
            self.dataset.catalogue,
            np.array(spans.last_event),
            self.scheme,
            size=len(spans),
            max_length=self.max_length,
        )
        item = np.concatenate([*candidates, np.zeros(0, np.int32)]).astype(np.int32)
        owner = np.repeat(np.arange(len(histories)), [len(items) for items in candidates])
        predictions = [np.zeros((0, len(self.scheme.tasks)), np.float32)]
        for start in range(0, len(item), self.block):
            part = slice(start, start + self.block)
            count = len(item[part])
            predictions.append(
                np.asarray(
                    self._rank(self._params, self._block(questions, owner[part], item[part]))
                )[:count]
            )
        ends = np.cumsum([len(items) for items in candidates])[:-1]
        return np.split(np.concatenate(predictions), ends)

    def _block(self, questions: Impressions, owner: np.ndarray, item: np.ndarray) -> Impressions:
        """The questions of the owners about the items, padded to a block."""
        missing = self.block - len(item)
        rows = np.pad(owner, (0, missing))
        fields = {f.name: getattr(questions, f.name) for f in dataclasses.fields(questions)}
        picked: dict[str, Any] = {
            name: None if value is None else value[rows] for name, value in fields.items()
        }
        picked |= {"item": np.pad(item, (0, missing)), "catalogue_features": self._item_features}
        return Impressions(**picked)

    def warm_up(self, *, most_rows: int) -> None:
        """Compiles the program: there is one, for blocks of candidates."""
        self([first_item(self.dataset)], [np.ones(1, np.int32)])
