"""Cached histories by user, within a budget of bytes: the least recently used go first."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from gr_jax.serving.history_tokens import Tokens
from gr_jax.serving.m_falcon import Entry, Scorer


@dataclasses.dataclass(frozen=True)
class Counters:
    """What a cache did since it was made, and what it holds."""

    hits: int = 0  # histories that were there, or were there but for their newest tokens
    misses: int = 0  # histories that were computed from their first token on
    evictions: int = 0  # entries given up for the budget
    appended: int = 0  # tokens that were appended to entries
    entries: int = 0  # entries now
    bytes: int = 0  # of the entries now


class HistoryCache:
    """Keeps what a `Scorer` computed of each user's history, and computes only what is new.

    An entry serves a history that begins with the tokens the entry was made of. Any other, such as one whose oldest
    event is not visible any more, is computed anew, so a wrong or reused key costs time and never a wrong score.
    """

    def __init__(self, scorer: Scorer, max_bytes: int):
        """`max_bytes`: of all entries together; 0 keeps none. `Scorer(storage="bfloat16")` makes them half as large."""
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes}: must be at least 0")
        self.scorer, self.max_bytes = scorer, max_bytes
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._counters = Counters()
        self._lock = threading.Lock()

    def entries(self, keys: Sequence[Hashable], histories: Sequence[Tokens]) -> list[Entry]:
        """The entries of whole histories, by their users' keys; what is missing is computed, several in a call.

        An entry that is returned can be used until the next call that has its key: tokens are appended in place.
        A key that comes twice in a call is served twice. Calls from several threads wait for one another.

        Raises:
          ValueError: as `Scorer.history`; the cache keeps what it had of other keys.
        """
        with self._lock:
            found: list[Entry | None] = [None] * len(keys)
            taken = set()
            for number, (key, tokens) in enumerate(zip(keys, histories, strict=True)):
                entry = self._entries.get(key)
                if entry is None or not tokens.starts_with(entry.tokens):
                    continue
                if new := len(tokens) - len(entry.tokens):
                    if key not in taken:
                        self._remove(key)  # nobody meets an entry whose memory is being written to
                    entry = self.scorer.append(
                        entry, tokens[len(entry.tokens) :], in_place=key not in taken
                    )
                taken.add(key)
                found[number] = entry
                self._count(hits=1, appended=new)
                self._put(key, entry)
            missing = [number for number, entry in enumerate(found) if entry is None]
            for number, entry in zip(
                missing, self.scorer.history([histories[n] for n in missing]), strict=True
            ):
                found[number] = entry
                self._count(misses=1)
                self._put(keys[number], entry)
            self._evict()
            return [entry for entry in found if entry is not None]

    def clear(self) -> None:
        """Forgets all entries; the counters go on."""
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
