"""Ranking against cached histories: what a user took is computed once, then only new events and candidates are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from flax import nnx
from jaxtyping import Float32, Int32

from gr_jax.data.batches.tokenizer import TokenScheme
from gr_jax.data.dataset import Dataset
from gr_jax.serving import history_tokens
from gr_jax.serving.cache import HistoryCache
from gr_jax.serving.encoder import first_item
from gr_jax.serving.history import History, one_a_row
from gr_jax.serving.m_falcon import MICRO_BATCHES, Candidates, Scorer


class CachedRanker:
    """Candidates of several users in micro-batches against their histories (M-FALCON), which a cache keeps.

    Attributes:
      cache: of histories, by `History.key`.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        params: dict,
        dataset: Dataset,
        scheme: TokenScheme,
        *,
        max_length: int,
        block: int,
        cache_bytes: int,
        squash: Callable[[np.ndarray], np.ndarray],
    ):
        """`max_length`: most events of a training sequence, the one asked about included.

        `block`: candidates of a micro-batch; `cache_bytes`: budget of the cache; `squash`: logits -> predictions.
        """
        self.dataset, self.scheme, self.visible, self.block = dataset, scheme, max_length - 1, block
        sizes = sorted({min(size, block) for size in MICRO_BATCHES})
        scorer = Scorer(graphdef, params, micro_batches=sizes)
        self.cache, self._squash = HistoryCache(scorer, cache_bytes), squash
        self._lock = threading.Lock()  # an entry in use must not be appended to

    def __call__(
        self, histories: Sequence[History], candidates: Sequence[Int32[np.ndarray, " _"]]
    ) -> list[Float32[np.ndarray, "M Y"]]:
        """Predictions for the candidates of each history, by task."""
        read, asked = self._read(histories, candidates)
        with self._lock:
            entries = self.cache.entries([history.key for history in histories], read)
            logits = self.cache.scorer.score(entries, asked)
        return [self._squash(x) for x in logits]

    def _read(
        self, histories: Sequence[History], candidates: Sequence[np.ndarray]
    ) -> tuple[list[history_tokens.Tokens], list[Candidates]]:
        """The tokens of each history, and what stands where the event asked about would be."""
        batch, count = one_a_row(
            histories, self.dataset, self.scheme, max_length=self.visible, with_asked=True
        )
        before = (
            count - self.scheme.tokens_per_event
        )  # of the event asked about the item alone is a token
        item_features = self.dataset.catalogue.item_features
        asked = [
            Candidates(
                item=items,
                time=int(batch.time[row, before[row]]),
                item_features=None if item_features is None else item_features[items],
                action=0 if batch.action is None else int(batch.action[row, before[row]]),
            )
            for row, items in enumerate(candidates)
        ]
        return history_tokens.of_rows(batch, before), asked

    def warm_up(self, *, most_rows: int) -> None:
        """Compiles every program; they do not depend on how many there are in a call."""
        read, asked = self._read([first_item(self.dataset)], [np.ones(1, np.int32)])
        self.cache.scorer.warm_up(read[0], asked[0])
