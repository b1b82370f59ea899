"""M-FALCON: many candidates against cached histories, in micro-batches.

    scorer = CandidateScorer(graphdef, params)            # of `models.recommender.make_model`
    entries = scorer.histories.compute([row_a, row_b])    # one forward over each history
    entries[0] = scorer.histories.extend(entries[0], longer_row_a)    # delta forward
    predictions = scorer.score(entries, [candidates_of_a, candidates_of_b])

`predictions[u]` is what one forward over history and all candidates of user u gives, up to
rounding: whatever the sizes of the micro-batches, the order of the candidates, who else is in the
call, and in how many pieces the history came. Histories and candidates are rows (`serving.rows`).
Programs are compiled once for each (bucket of history lengths, micro-batch, rows of a call):
`warm_up` does that in advance. Source: Zhai et al. 2024, section 3.4, algorithm 1.

In ranking a candidate is a token behind the history (`CandidateScorer`). In retrieval the last
event's token is peeked at, since its bias counts from the time asked about (`QueryScorer`).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from gr_jax.data.batches.batch import Batch
from gr_jax.models import kv_cache
from gr_jax.models.kv_cache import KvCache
from gr_jax.models.recommender import Recommender
from gr_jax.serving import buckets, rows

MICRO_BATCHES = (16, 128, 512)
USERS = 4  # users of one call
PIECES = (8, 2, 1)  # tokens that one call appends: a history is appended without padding

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Micro = tuple[int, int, int]  # user, first candidate, size of the micro-batch


@dataclasses.dataclass(frozen=True)
class Entry:
    """A history and the keys and values of its final tokens on the device."""

    tokens: Batch  # one row
    cache: KvCache  # of one row

    @property
    def room(self) -> int:
        """Tokens that `cache` has room for."""
        return self.cache.time.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes in memory, on device and host."""
        return sum(x.nbytes for x in jax.tree.leaves(self.cache)) + rows.nbytes(self.tokens)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the programs."""

    # dtype of cached keys and values: float32 | bfloat16; "" = the model's compute_dtype
    storage: str = ""
    # candidates of one call; a user's last ones go into the smallest that holds them
    micro_batches: tuple[int, ...] = MICRO_BATCHES
    users: int = USERS  # of one call, at most
    lengths: tuple[int, ...] = ()  # buckets of history lengths, ascending; () = `buckets.lengths`
    implementation: str | None = None  # of `pallas_kernels.hstu_cached_attention`

    def __post_init__(self):
        """Raise a ValueError for sizes that cannot be."""
        if self.storage not in ("", "float32", "bfloat16"):
            raise ValueError(
                f"storage={self.storage!r}: must be float32 or bfloat16,"
                " or '' for the model's compute_dtype"
            )
        if self.users < 1 or not self.micro_batches or min(self.micro_batches) < 1:
            raise ValueError(
                f"micro_batches={self.micro_batches}, users={self.users}: must be at least 1"
            )


class Histories:
    """Programs that compute the entries of histories, and extend them by new tokens.

    Attributes:
      params, tasks: of the model. max_tokens: of a history. lengths: buckets of history lengths.
    """

    def __init__(
        self, graphdef: nnx.GraphDef, params: dict, settings: Settings, *, unfinished: int
    ):
        """`unfinished`: last tokens of a history that are not final yet, 1 in retrieval.

        Raises:
          ValueError: not an HSTU model.
        """
        model = nnx.merge(graphdef, params)
        if not isinstance(model, Recommender) or model.config.kind != "hstu":
            raise ValueError(
                f"only HSTU models can be cached, not {model.config.kind!r}:"
                " score it without a cache"
            )
        self.params, self.unfinished, self.users = params, unfinished, settings.users
        self.tasks = model.sizes.tasks
        self.max_tokens = len(model.embeddings.position_table)
        self.lengths = settings.lengths or buckets.lengths(self.max_tokens)

        def prefill(params: dict, batch: Batch) -> tuple[KvCache, ...]:
            model = nnx.merge(graphdef, params)
            return kv_cache.unstack(kv_cache.prefill(model, batch, storage=settings.storage)[1])

        def delta(params: dict, batch: Batch, cache: KvCache) -> KvCache:
            model = nnx.merge(graphdef, params)
            return kv_cache.delta(model, batch, cache, implementation=settings.implementation)[1]

        self._prefill, self._delta = jax.jit(prefill), jax.jit(delta)
        self._write = jax.jit(kv_cache.write, donate_argnums=0)
        self._copy, self._grow = jax.jit(kv_cache.copy), jax.jit(kv_cache.grow, static_argnums=1)

    def compute(self, histories: Sequence[Batch]) -> list[Entry]:
        """Entries of whole histories, by one forward over each; several in a call.

        Raises:
          ValueError: a history with more tokens than the model sees, or one of retrieval that ends
            with no item.
        """
        final = [self._final(row) for row in histories]
        found: dict[int, Entry] = {}
        by_room = _grouped(range(len(histories)), lambda user: self._bucket(final[user]))
        for room, owners in by_room:
            for users in self.parts(owners):
                batch = rows.stack(
                    [rows.piece(histories[user], 0, final[user]) for user in users],
                    num_rows=self.rows_of(users),
                    row_length=room,
                )
                caches = self._prefill(self.params, batch)[: len(users)]
                for user, cache in zip(users, caches, strict=True):
                    found[user] = Entry(histories[user], cache)
        return [found[user] for user in range(len(histories))]

    def extend(self, entry: Entry, history: Batch, *, in_place: bool = False) -> Entry:
        """The entry of a longer history: nothing of its first tokens is computed again.

        Args:
          entry: of a history that `history` starts with.
          history: the whole history.
          in_place: write into the memory of `entry`, which cannot be used any more; saves a copy.

        Raises:
          ValueError: as `compute`.
        """
        target, done, cache = self._final(history), self._final(entry.tokens), entry.cache
        if target > entry.room:
            while target > cache.time.shape[1]:  # bucket by bucket: one program for each
                cache = self._grow(cache, self._bucket(cache.time.shape[1] + 1))
        elif not in_place and target > done:
            cache = self._copy(cache)
        while done < target:
            size = next(size for size in PIECES if done + size <= target)
            new = self._delta(self.params, rows.piece(history, done, done + size), cache)
            cache, done = self._write(cache, new), done + size
        return Entry(history, cache)

    def warm_up(self, room: int, history: Batch) -> list[Entry]:
        """Compile the programs of a bucket; the entries of a full history that a call can have."""
        full = rows.repeat(history, min(room, self.max_tokens))
        length = rows.length(full)
        for size in (size for size in PIECES if size < length):
            (entry,) = self.compute([rows.piece(full, 0, length - size)])
            self.extend(entry, full, in_place=True)
        entries = self.compute([full] * self.users)
        single = self.compute([full])
        cache = self._copy(single[0].cache)
        if room < self.lengths[-1]:
            self._grow(cache, self._bucket(room + 1))
        return entries

    def parts(self, things: list[T]) -> list[list[T]]:
        """Parts of as many things as a call has users.

        A last part of at most half a call falls into single ones, which need no padding.
        """
        parts = [things[lo : lo + self.users] for lo in range(0, len(things), self.users)]
        if parts and len(parts[-1]) <= self.users // 2:
            parts += [[thing] for thing in parts.pop()]
        return parts

    def rows_of(self, users: Sequence) -> int:
        """Rows of a call for these users: one, or as many as a call can have."""
        return 1 if len(users) == 1 else self.users

    def caches(self, entries: Sequence[Entry]) -> tuple[KvCache, ...]:
        """The caches of a call, the first again for rows that are not used."""
        unused = [entries[0]] * (self.rows_of(entries) - len(entries))
        return tuple(entry.cache for entry in (*entries, *unused))

    def _final(self, row: Batch) -> int:
        """Tokens that can be cached: those that are final."""
        length = rows.length(row)
        if length > self.max_tokens:
            raise ValueError(
                f"a history of {length} tokens: the model sees {self.max_tokens},"
                " give the last ones"
            )
        if self.unfinished and length and row.item[0, -1] == 0:
            raise ValueError("a history of retrieval ends with an item")
        return max(0, length - self.unfinished)

    def _bucket(self, tokens: int) -> int:
        return buckets.fitting(self.lengths, tokens)


class QueryScorer:
    """Retrieval: unit vectors that ask what comes after cached histories."""

    def __init__(self, graphdef: nnx.GraphDef, params: dict, settings: Settings | None = None):
        """Describe the programs, each of which is compiled at its first use.

        Args:
          graphdef: of an HSTU `Recommender` without tasks.
          params: its parameters.
          settings: sizes of the programs.

        Raises:
          ValueError: a model of another kind.
        """
        settings = settings or Settings()
        self.histories = Histories(graphdef, params, settings, unfinished=1)
        if self.histories.tasks:
            raise ValueError(
                "this is a ranking model: it scores candidates, and has no vector of a history"
            )

        def encode(params: dict, batch: Batch, caches: tuple[KvCache, ...]) -> Float[Array, "R D"]:
            model, cache = nnx.merge(graphdef, params), kv_cache.stack(caches)
            hidden = kv_cache.peek(model, batch, cache, implementation=settings.implementation)
            return model.vectors(hidden)[:, 0]

        self._encode = jax.jit(encode)

    def encode(self, entries: Sequence[Entry]) -> Float32[np.ndarray, "B D"]:
        """Unit vectors that ask what comes next, at the `query_time` of each last token.

        Raises:
          ValueError: an empty history.
        """
        ends = [rows.length(entry.tokens) for entry in entries]
        if not all(ends):
            raise ValueError("an empty history has no vector")
        done = []
        for _, owners in _grouped(range(len(entries)), lambda user: entries[user].room):
            for users in self.histories.parts(owners):
                last = [rows.piece(entries[u].tokens, ends[u] - 1, ends[u]) for u in users]
                batch = rows.stack(last, num_rows=self.histories.rows_of(users), row_length=1)
                caches = self.histories.caches([entries[user] for user in users])
                done.append((users, self._encode(self.histories.params, batch, caches)))
        found: dict[int, np.ndarray] = {}  # filled when all calls are under way
        for users, vectors in done:
            found |= zip(users, np.asarray(vectors), strict=False)
        return np.stack([found[user] for user in range(len(entries))])

    def warm_up(self, history: Batch) -> None:
        """Compile every program by running it, several buckets at a time.

        `history`: any history that is not empty, for the fields of its tokens.
        """

        def run(room: int) -> None:
            entries = self.histories.warm_up(room, history)
            for count in {1, len(entries)}:
                self.encode(entries[:count])

        _in_threads(run, self.histories.lengths)


class CandidateScorer:
    """Ranking: predictions for candidates of cached histories, in micro-batches."""

    def __init__(self, graphdef: nnx.GraphDef, params: dict, settings: Settings | None = None):
        """Describe the programs, each of which is compiled at its first use.

        Args:
          graphdef: of an HSTU `Recommender` with tasks.
          params: its parameters.
          settings: sizes of the programs.

        Raises:
          ValueError: a model of another kind.
        """
        settings = settings or Settings()
        self.histories = Histories(graphdef, params, settings, unfinished=0)
        self.micro_batches = tuple(sorted(settings.micro_batches))

        def predict(
            params: dict, batch: Batch, caches: tuple[KvCache, ...]
        ) -> Float[Array, "R L Y"]:
            model, cache = nnx.merge(graphdef, params), kv_cache.stack(caches)
            hidden = kv_cache.peek(model, batch, cache, implementation=settings.implementation)
            return model.predictions(model.logits(hidden))

        self._predict = jax.jit(predict)

    def score(
        self, entries: Sequence[Entry], candidates: Sequence[Batch]
    ) -> list[Float32[np.ndarray, "M Y"]]:
        """Predictions for each user's candidates, by task.

        Args:
          entries: of the histories.
          candidates: a row for each history: tokens that would come after it, all at one time.
        """
        counts = [rows.length(row) for row in candidates]
        done = []  # all calls are under way before the first result is read
        for part in self._calls(entries, counts):
            pieces = [
                rows.piece(candidates[user], lo, min(lo + size, counts[user]))
                for user, lo, size in part
            ]
            num_rows = self.histories.rows_of(part)
            batch = rows.stack(pieces, num_rows=num_rows, row_length=part[0][2])
            caches = self.histories.caches([entries[user] for user, _, _ in part])
            done.append((part, self._predict(self.histories.params, batch, caches)))

        num_tasks = len(self.histories.tasks)
        found = [np.zeros((count, num_tasks), np.float32) for count in counts]
        for part, values in done:
            for (user, lo, size), row in zip(part, np.asarray(values), strict=False):
                found[user][lo : lo + size] = row[: counts[user] - lo]
        return found

    def _calls(self, entries: Sequence[Entry], counts: Sequence[int]) -> list[list[Micro]]:
        """Micro-batches by call: full ones alone, those of the last candidates several at a time.

        Those of one call have one size, and histories with equal room.
        """
        largest, whole, rest = self.micro_batches[-1], [], []
        for user, count in enumerate(counts):
            whole += [[(user, lo, largest)] for lo in range(0, count - largest + 1, largest)]
            if left := count % largest:
                rest.append((user, count - left, buckets.fitting(self.micro_batches, left)))
        for _, group in _grouped(rest, lambda piece: (entries[piece[0]].room, piece[2])):
            whole += self.histories.parts(group)
        return whole

    def warm_up(self, history: Batch, candidate: Batch) -> None:
        """Compile every program by running it, several buckets at a time.

        Args:
          history: any history that is not empty, for the fields of its tokens.
          candidate: any one candidate.
        """

        def run(room: int) -> None:
            entries = self.histories.warm_up(room, history)
            for smaller, size in zip((0, *self.micro_batches), self.micro_batches, strict=False):
                # Full micro-batches of several users are never one call.
                for count, users in ((size, 1), (smaller + 1, len(entries))):
                    self.score(entries[:users], [rows.repeat(candidate, count)] * users)

        _in_threads(run, self.histories.lengths)


def _grouped(things: Iterable[T], key: Callable[[T], K]) -> list[tuple[K, list[T]]]:
    """The things by key, in the order of the keys' first appearance."""
    groups: dict[K, list[T]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return list(groups.items())


def _in_threads(function: Callable[[int], None], values: Sequence[int]) -> None:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(function, values))
