"""Cached histories by user, within a budget of bytes, and the answers of models from them."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float32

from gr_jax.data.batches.batch import Batch
from gr_jax.serving import rows
from gr_jax.serving.history import History, warm_up_history
from gr_jax.serving.m_falcon import CandidateScorer, Entry, Histories, QueryScorer
from gr_jax.serving.query import Counters, Items
from gr_jax.serving.rows import RowMaker


class HistoryCache:
    """Entries of users' histories, of which only new tokens are computed.

    The least recently used go first. An entry serves a history that begins with the tokens that the
    entry was made of. Any other, such as one whose oldest event is not visible any more, is
    computed from its first token on: a wrong or reused key costs time and never a wrong score.
    """

    def __init__(self, histories: Histories, max_bytes: int):
        """`max_bytes`: of all entries together; 0 keeps none.

        `Settings(storage="bfloat16")` makes entries half as large.
        """
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes}: must be at least 0")
        self.histories, self.max_bytes = histories, max_bytes
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._counters = Counters()
        self._lock = threading.Lock()

    def entries(self, keys: Sequence[Hashable], histories: Sequence[Batch]) -> list[Entry]:
        """The entries of whole histories, by their users' keys.

        Those that are missing are computed, several in a call. An entry can be used until the next
        call that has its key: tokens are appended in place. A key that comes twice in a call is
        served twice. Calls from several threads wait for one another.

        Raises:
          ValueError: as `Histories.compute`; the cache keeps its entries of other keys.
        """
        with self._lock:
            found: dict[int, Entry] = {}
            served = set()
            for number, (key, row) in enumerate(zip(keys, histories, strict=True)):
                entry = self._entries.get(key)
                if entry is None or not rows.starts_with(row, entry.tokens):
                    continue
                new = rows.length(row) - rows.length(entry.tokens)
                if new and key not in served:
                    self._remove(key)  # no call meets an entry whose memory is being written to
                entry = self.histories.extend(entry, row, in_place=key not in served)
                served.add(key)
                found[number] = entry
                self._count(hits=1, appended=new)
                self._put(key, entry)

            missing = [number for number in range(len(keys)) if number not in found]
            computed = self.histories.compute([histories[number] for number in missing])
            for number, entry in zip(missing, computed, strict=True):
                found[number] = entry
                self._count(misses=1)
                self._put(keys[number], entry)

            self._evict()
            return [found[number] for number in range(len(keys))]

    def clear(self) -> None:
        """Drop all entries; the counters go on."""
        with self._lock:
            for key in list(self._entries):
                self._remove(key)

    @property
    def counters(self) -> Counters:
        """A snapshot."""
        return self._counters

    def _put(self, key: Hashable, entry: Entry) -> None:
        self._remove(key)
        self._entries[key] = entry
        self._count(entries=1, bytes=entry.nbytes)

    def _remove(self, key: Hashable) -> None:
        if (entry := self._entries.pop(key, None)) is not None:
            self._count(entries=-1, bytes=-entry.nbytes)

    def _evict(self) -> None:
        while self._counters.bytes > self.max_bytes:
            self._remove(next(iter(self._entries)))
            self._count(evictions=1)

    def _count(self, **changes: int) -> None:
        now = {name: getattr(self._counters, name) + change for name, change in changes.items()}
        self._counters = dataclasses.replace(self._counters, **now)


class CachedEncoder:
    """Query vectors of retrieval, from a cache of keys and values of histories.

    Positions and times count from the oldest visible event. The cache serves a history while that
    event stays the same: up to `max_events` events every new one is appended. From then on each new
    event moves the window by one, and the whole window is computed; asked again without a new
    event, it is served from the cache at any length.

    Attributes:
      cache: of histories, by `History.key`.
    """

    def __init__(self, scorer: QueryScorer, maker: RowMaker, *, max_bytes: int):
        self.scorer, self.maker = scorer, maker
        self.cache = HistoryCache(scorer.histories, max_bytes)
        self._lock = threading.Lock()  # an entry in use must not be appended to

    def __call__(self, histories: Sequence[History]) -> Float32[np.ndarray, "B D"]:
        """A unit vector for each history; none may be empty."""
        read = self.maker.histories(histories)
        with self._lock:
            entries = self.cache.entries([history.key for history in histories], read)
            return self.scorer.encode(entries)

    def warm_up(self, *, max_histories: int) -> None:
        """Compile every program; they do not depend on the number of histories in a call."""
        (row,) = self.maker.histories([warm_up_history(self.maker.dataset)])
        self.scorer.warm_up(row)


class CachedPredictor:
    """Predictions of ranking, in micro-batches (M-FALCON) against cached histories.

    Attributes:
      cache: of histories, by `History.key`.
    """

    def __init__(self, scorer: CandidateScorer, maker: RowMaker, *, max_bytes: int):
        self.scorer, self.maker = scorer, maker
        self.cache = HistoryCache(scorer.histories, max_bytes)
        self._lock = threading.Lock()  # an entry in use must not be appended to

    def __call__(
        self, histories: Sequence[History], candidates: Sequence[Items]
    ) -> list[Float32[np.ndarray, "M Y"]]:
        """Predictions for the candidates of each history, by task."""
        read, asked = self.maker.with_candidates(histories, candidates)
        with self._lock:
            entries = self.cache.entries([history.key for history in histories], read)
            return self.scorer.score(entries, asked)

    def warm_up(self, *, max_blocks: int) -> None:
        """Compile every program; they do not depend on the number of candidates in a call."""
        history, item = warm_up_history(self.maker.dataset), np.ones(1, np.int32)
        (row,), (candidate,) = self.maker.with_candidates([history], [item])
        self.scorer.warm_up(row, candidate)
