"""M-FALCON: many candidates against cached histories, in micro-batches (Zhai et al. 2024, section 3.4, algorithm 1).

    scorer = Scorer(graphdef, params)                      # of `models.recommender.functional`
    entries = scorer.history([tokens_of_a, tokens_of_b])   # one forward over each history, kept on the device
    entries[0] = scorer.append(entries[0], new_tokens)     # delta forward
    scores = scorer.score(entries, [candidates_of_a, candidates_of_b])

`scores[u]` is what one forward over history and all candidates of user u gives, up to rounding: whatever the sizes of
the micro-batches, the order of the candidates, who else is in the call, and in how many pieces the history came. The
programs are compiled once for each (bucket of history lengths, micro-batch, rows): `warm_up` does that in advance.

Ranking: a candidate is a token behind the history. Retrieval: the last event's token asks about the candidates' time,
and a score is the dot product of its vector with the item's, over the temperature, as in training.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from gr_jax.data.batches.batch import Batch
from gr_jax.models import cached
from gr_jax.models.cached import Cached
from gr_jax.models.hstu import NORM_EPS
from gr_jax.models.layers import l2_normalise, layer_norm
from gr_jax.models.recommender import Recommender
from gr_jax.serving.buckets import lengths
from gr_jax.serving.history_tokens import Tokens, to_rows

MICRO_BATCHES = (16, 128, 512)
ROWS = 4  # users of one call
PIECES = (8, 2, 1)  # tokens that one call appends: a history is appended without padding


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What one user may be shown, at one moment."""

    item: Int[np.ndarray, " M"]  # item ids
    time: int  # seconds since the first event of the history, as in its tokens
    item_features: Int[np.ndarray, "M F"] | None = None  # feature values of the items
    action: int = 0  # of the candidate tokens: in the stream "sum" the action of the last event, as 1 + 2 * bits


@dataclasses.dataclass(frozen=True)
class Entry:
    """A history and what is kept of it on the device: in retrieval of all tokens but the last, else of all."""

    tokens: Tokens
    cached: Cached  # of one row

    @property
    def room(self) -> int:
        """Tokens that `cached` has room for."""
        return self.cached.time.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes in memory, on device and host."""
        return sum(x.nbytes for x in jax.tree.leaves(self.cached)) + self.tokens.nbytes


class Scorer:
    """A trained sequence model with the programs that score candidates against cached histories."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        params: dict,
        *,
        storage: str = "",
        micro_batches: Sequence[int] = MICRO_BATCHES,
        rows: int = ROWS,
        buckets: Sequence[int] = (),
        implementation: str | None = None,
    ):
        """Describes the programs; each is compiled at its first use.

        Args:
          graphdef: of an HSTU `Recommender`; with a head for ranking, without for retrieval.
          params: its parameters.
          storage: dtype of cached keys and values: float32 | bfloat16; "" = the model's compute_dtype.
          micro_batches: candidates of one call; a user's last ones go into the smallest that holds them.
          rows: most users of one call.
          buckets: lengths of history that programs are compiled for; () = `buckets.lengths`.
          implementation: of `pallas_kernels.hstu_cached_attention`.

        Raises:
          ValueError: not an HSTU model, or sizes that cannot be.
        """
        model = nnx.merge(graphdef, params)
        kind = model.config.kind
        if not isinstance(model, Recommender) or kind != "hstu":
            raise ValueError(
                f"only HSTU models can be cached, here {kind!r}: score it without a cache"
            )
        if storage not in ("", "float32", "bfloat16"):
            raise ValueError(
                f"storage={storage!r}: must be float32 or bfloat16, or '' for the model's compute_dtype"
            )
        if rows < 1 or not micro_batches or min(micro_batches) < 1:
            raise ValueError(
                f"micro_batches={tuple(micro_batches)}, rows={rows}: must be at least 1"
            )
        self.params, self.max_tokens = params, len(model.embeddings.position_table)
        self.is_retrieval = model.head is None
        self.micro_batches, self.rows = tuple(sorted(micro_batches)), rows
        self.buckets = tuple(sorted(buckets)) or lengths(self.max_tokens)
        self._num_tasks = 1 if model.head is None else model.head.output.bias.shape[0]
        self._with_actions = model.embeddings.action_table is not None

        def jit(function: Callable, **options: Any) -> Callable:
            return jax.jit(
                lambda params, *args: function(nnx.merge(graphdef, params), *args), **options
            )

        def history(model: Recommender, batch: Batch) -> tuple[Cached, ...]:
            return cached.unstack(cached.prefill(model, batch, storage=storage)[1])

        def extend(model: Recommender, batch: Batch, store: Cached) -> Cached:
            return cached.delta(model, batch, store, implementation=implementation)[1]

        def peek(
            model: Recommender, batch: Batch, rows: tuple[Cached, ...]
        ) -> Float[Array, "R L D"]:
            return cached.peek(model, batch, cached.stack(rows), implementation=implementation)

        def rank(
            model: Recommender, batch: Batch, rows: tuple[Cached, ...]
        ) -> Float[Array, "R L Y"]:
            assert model.head is not None
            return model.head(layer_norm(peek(model, batch, rows), NORM_EPS))

        def encode(
            model: Recommender, batch: Batch, rows: tuple[Cached, ...]
        ) -> Float[Array, "R D"]:
            return l2_normalise(peek(model, batch, rows))[:, 0]

        def similarity(
            model: Recommender, vector: Float[Array, " D"], item: Int[Array, " M"]
        ) -> Float[Array, " M"]:
            return (
                l2_normalise(model.embeddings.item_table[item]) @ vector / model.config.temperature
            )

        self._history, self._rank, self._encode, self._similarity = map(
            jit, (history, rank, encode, similarity)
        )
        self._extend, self._write = jit(extend), jax.jit(cached.write, donate_argnums=0)
        self._copy, self._grow = jax.jit(_copy), jax.jit(_grow, static_argnums=1)

    def history(self, histories: Sequence[Tokens]) -> list[Entry]:
        """Entries of whole histories, by one forward over each; several in a call.

        Raises:
          ValueError: a history with more tokens than the model sees, or one of retrieval that ends with no item.
        """
        final = [self._final(tokens) for tokens in histories]
        asked = [self._asked(tokens) for tokens in histories]
        found: dict[int, Entry] = {}
        for room, owners in _grouped(range(len(histories)), lambda user: self._bucket(final[user])):
            for users in _parts(owners, self.rows):
                rows = 1 if len(users) == 1 else self.rows
                pieces, times = (
                    [x[user][: final[user]] for user in users] for x in (histories, asked)
                )
                batch = to_rows(pieces, times, 0, num_rows=rows, row_length=room)
                stores = self._history(self.params, batch)[: len(users)]
                found |= {
                    user: Entry(histories[user], store)
                    for user, store in zip(users, stores, strict=True)
                }
        return [found[user] for user in range(len(histories))]

    def append(self, entry: Entry, new: Tokens, *, in_place: bool = False) -> Entry:
        """The entry of a history with some tokens more: of the old ones nothing is computed again.

        Args:
          entry: of the history so far.
          new: the tokens after it; times count from the first event of the whole history.
          in_place: writes into the memory of `entry`, which cannot be used any more; saves a copy of the cache.

        Raises:
          ValueError: as `history`.
        """
        whole = entry.tokens + new
        target, done = self._final(whole), self._final(entry.tokens)
        asked, store = self._asked(whole), entry.cached
        if target > entry.room:
            while target > store.time.shape[1]:  # bucket by bucket: one program for each
                store = self._grow(store, self._bucket(store.time.shape[1] + 1))
        elif not in_place and target > done:
            store = self._copy(store)
        while done < target:
            size = next(size for size in PIECES if done + size <= target)
            piece = slice(done, done + size)
            batch = to_rows([whole[piece]], [asked[piece]], done, num_rows=1, row_length=size)
            store, done = self._write(store, self._extend(self.params, batch, store)), done + size
        return Entry(whole, store)

    def encode(
        self, entries: Sequence[Entry], at_time: Sequence[int]
    ) -> Float32[np.ndarray, "B D"]:
        """Retrieval: unit vectors that ask what comes at these times (seconds since the first event of each).

        Raises:
          ValueError: an empty history, or a model for ranking.
        """
        if not self.is_retrieval:
            raise ValueError(
                "this is a ranking model: it scores candidates, and has no vector of a history"
            )
        if not all(len(entry.tokens) for entry in entries):
            raise ValueError("an empty history has no vector")
        found: list[Any] = [None] * len(entries)
        for _, owners in _grouped(range(len(entries)), lambda user: entries[user].room):
            for users in _parts(owners, self.rows):
                rows = 1 if len(users) == 1 else self.rows
                last = [entries[user].tokens[-1:] for user in users]
                asked = [np.array([at_time[user]]) for user in users]
                batch = to_rows(last, asked, 0, num_rows=rows, row_length=1)
                position = np.zeros((rows, 1), np.int32)
                position[: len(users), 0] = [len(entries[user].tokens) - 1 for user in users]
                stores = self._stores(entries, users, rows)
                vectors = self._encode(
                    self.params, dataclasses.replace(batch, position=position), stores
                )
                for row, user in enumerate(users):
                    found[user] = vectors[row]
        return np.stack([np.asarray(vector) for vector in found])

    def score(
        self, entries: Sequence[Entry], candidates: Sequence[Candidates]
    ) -> list[Float32[np.ndarray, "M Y"]]:
        """Logits of each user's candidates: by task in ranking, of the retrieval head (Y = 1) in retrieval.

        All calls are under way before the first result is read.

        Raises:
          ValueError: an empty history, in retrieval.
        """
        items = [given.item for given in candidates]
        whole, rest = self._micro_batches([len(item) for item in items])
        if self.is_retrieval:
            vectors = self.encode(entries, [given.time for given in candidates])
            done = [
                (
                    [(user, lo, size)],
                    self._similarities(vectors[user], _padded(items[user][lo:], size)),
                )
                for user, lo, size in (*whole, *rest)
            ]
        else:
            done = [
                (part, self._scores(entries, candidates, part))
                for part in ([piece] for piece in whole)
            ]
            for _, group in _grouped(rest, lambda piece: (entries[piece[0]].room, piece[2])):
                done += [
                    (part, self._scores(entries, candidates, part))
                    for part in _parts(group, self.rows)
                ]
        found = [np.zeros((len(item), self._num_tasks), np.float32) for item in items]
        for part, values in done:
            values = np.asarray(values)
            for row, (user, lo, size) in enumerate(part):
                found[user][lo : lo + size] = values[row, : len(items[user]) - lo]
        return found

    def warm_up(
        self, tokens: Tokens, candidates: Candidates | None = None, *, buckets: Sequence[int] = ()
    ) -> None:
        """Compiles the programs of these buckets (() = all) by running them, several at a time.

        Args:
          tokens: any history that is not empty, for what its tokens hold.
          candidates: any one candidate; None, in retrieval, warms up `encode` and not `score`.
        """
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(
                pool.map(
                    lambda room: self._warm_up(room, tokens, candidates), buckets or self.buckets
                )
            )

    def _warm_up(self, room: int, tokens: Tokens, candidates: Candidates | None) -> None:
        length = min(room, self.max_tokens)
        full = tokens
        while len(full) < length:
            full = (full + full)[:length]
        for users in {1, self.rows}:
            entries = self.history([full] * users)
            if candidates is None:
                self.encode(entries, [0] * users)
            else:
                for many in self._some(candidates, users):
                    self.score(entries, [many] * users)
        for size in [size for size in PIECES if size < length]:
            self.append(self.history([full[:-size]])[0], full[-size:], in_place=True)
        store = self._copy(self.history([full])[0].cached)
        if room < self.buckets[-1]:
            self._grow(store, self._bucket(room + 1))

    def _some(self, one: Candidates, users: int) -> list[Candidates]:
        """For each size of micro-batch as many candidates as make a call of it."""
        found = []
        for smaller, size in zip((0, *self.micro_batches), self.micro_batches, strict=False):
            n = (
                size if users == 1 else smaller + 1
            )  # full micro-batches of several users are never one call
            pick = lambda x, n=n: None if x is None else np.repeat(x[:1], n, 0)
            found.append(
                dataclasses.replace(one, item=pick(one.item), item_features=pick(one.item_features))
            )
        return found

    def _scores(
        self, entries: Sequence[Entry], candidates: Sequence[Candidates], part: Sequence[tuple]
    ) -> Array:
        """Logits [rows, size, Y] of micro-batches of one size, of users whose entries have equal room."""
        size, rows = part[0][2], 1 if len(part) == 1 else self.rows
        names = ("item", "time", "position", "segment")
        fields: dict[str, Any] = {name: np.zeros((rows, size), np.int32) for name in names}
        if self._with_actions:
            fields["action"] = np.zeros((rows, size), np.int32)
        for row, (user, lo, _) in enumerate(part):
            given = candidates[user]
            fields["item"][row] = _padded(given.item[lo:], size)
            fields["time"][row], fields["position"][row] = given.time, len(entries[user].tokens)
            fields["segment"][row, : len(given.item) - lo] = 1
            if self._with_actions:
                fields["action"][row] = given.action
            if given.item_features is not None:
                item_features = fields.setdefault(
                    "item_features", np.zeros((rows, size, given.item_features.shape[1]), np.int32)
                )
                item_features[row] = _padded(given.item_features[lo:], size)
        stores = self._stores(entries, [user for user, _, _ in part], rows)
        return self._rank(self.params, Batch(**fields, query_time=fields["time"]), stores)

    def _similarities(self, vector: np.ndarray, item: np.ndarray) -> Array:
        return self._similarity(self.params, vector, item)[None, :, None]

    def _stores(
        self, entries: Sequence[Entry], users: Sequence[int], rows: int
    ) -> tuple[Cached, ...]:
        """The caches of these users, the first again for rows that are not used."""
        return tuple(entries[user].cached for user in (*users, *[users[0]] * (rows - len(users))))

    def _micro_batches(self, counts: Sequence[int]) -> tuple[list[tuple], list[tuple]]:
        """(user, first candidate, size) of full micro-batches of the largest size, and of each user's last ones."""
        most, whole, rest = self.micro_batches[-1], [], []
        for user, count in enumerate(counts):
            whole += [(user, lo, most) for lo in range(0, count - most + 1, most)]
            if left := count % most:
                rest.append(
                    (user, count - left, next(size for size in self.micro_batches if size >= left))
                )
        return whole, rest

    def _final(self, tokens: Tokens) -> int:
        """How many tokens can be cached: in retrieval all but the last, whose time bias is of the time asked about."""
        if len(tokens) > self.max_tokens:
            raise ValueError(
                f"a history of {len(tokens)} tokens: the model sees {self.max_tokens}, give the last ones"
            )
        if not self.is_retrieval or not len(tokens):
            return len(tokens)
        if tokens.item[-1] == 0:
            raise ValueError("a history of retrieval ends with an item")
        return len(tokens) - 1

    def _asked(self, tokens: Tokens) -> np.ndarray:
        return tokens.asked_times() if self.is_retrieval else tokens.time

    def _bucket(self, tokens: int) -> int:
        """The smallest bucket that holds so many tokens."""
        fitting = [bucket for bucket in self.buckets if bucket >= tokens]
        if not fitting:
            raise ValueError(
                f"a history of {tokens} tokens is longer than the largest bucket, {self.buckets[-1]}"
            )
        return fitting[0]


def _grouped(things: Sequence | range, key: Callable) -> list[tuple[Any, list]]:
    """The things by key, in the order of the keys' first appearance."""
    groups: dict[Any, list] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return list(groups.items())


def _parts(things: list, size: int) -> list[list]:
    """Parts of `size` things; a last part of at most half that many falls into single ones, which need no padding."""
    parts = [things[lo : lo + size] for lo in range(0, len(things), size)]
    if parts and len(parts[-1]) <= size // 2:
        parts += [[thing] for thing in parts.pop()]
    return parts


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    """The first `size` values, with zeros behind them where there are fewer."""
    filled = np.zeros((size, *values.shape[1:]), np.int32)
    filled[: len(values[:size])] = values[:size]
    return filled


def _copy(store: Cached) -> Cached:
    """The same in new memory."""
    return jax.tree.map(jnp.copy, store)


def _grow(store: Cached, room: int) -> Cached:
    """The cache with room for more tokens."""
    wider = lambda x, axis: jnp.pad(
        x, [(0, room - x.shape[n] if n == axis else 0) for n in range(x.ndim)]
    )
    keys, values = (tuple(wider(x, 2) for x in layers) for layers in (store.k, store.v))
    return Cached(keys, values, wider(store.time, 1), store.length)
