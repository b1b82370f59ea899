"""Query vectors from cached histories (retrieval): only events that are new to a user's cached history are computed."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from flax import nnx
from jaxtyping import Float32

from gr_jax.data.batches.tokenizer import TokenScheme
from gr_jax.data.dataset import Dataset
from gr_jax.serving import history_tokens
from gr_jax.serving.cache import HistoryCache
from gr_jax.serving.encoder import first_item
from gr_jax.serving.history import History, one_a_row
from gr_jax.serving.m_falcon import Scorer


class CachedEncoder:
    """The vectors that ask what comes next, as `Encoder` gives them; a cache keeps keys and values of histories.

    Positions and times count from the oldest visible event. The cache serves a history while that event stays the same:
    up to `max_length` events every new one is appended. From then on each new event moves the window by one, and the
    whole window is computed anew; asked again without a new event, it is served from the cache at any length.

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
        cache_bytes: int,
    ):
        """`max_length`: most events of a history that the model sees; `cache_bytes`: budget of the cache."""
        self.dataset, self.scheme, self.max_length = dataset, scheme, max_length
        self.cache = HistoryCache(Scorer(graphdef, params), cache_bytes)
        self._lock = threading.Lock()  # an entry in use must not be appended to

    def __call__(self, histories: Sequence[History]) -> Float32[np.ndarray, "B D"]:
        """A unit vector for each history; none may be empty."""
        read, asked = self._read(histories)
        with self._lock:
            entries = self.cache.entries([history.key for history in histories], read)
            return self.cache.scorer.encode(entries, asked)

    def _read(self, histories: Sequence[History]) -> tuple[list[history_tokens.Tokens], list[int]]:
        """The visible tokens of each history, and the time asked about, from its first visible event."""
        batch, count = one_a_row(
            histories, self.dataset, self.scheme, max_length=self.max_length, with_asked=False
        )
        asked = np.asarray(batch.query_time)[np.arange(len(histories)), count - 1]
        return history_tokens.of_rows(batch, count), asked.tolist()

    def warm_up(self, *, most_rows: int) -> None:
        """Compiles every program; they do not depend on how many histories there are in a call."""
        read, _ = self._read([first_item(self.dataset)])
        self.cache.scorer.warm_up(read[0])
