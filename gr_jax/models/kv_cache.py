"""The sequence model on new tokens alone: keys and values of the history are stored and reused.

    hidden, cache = prefill(model, history)     one forward over the tokens so far
    hidden, new = delta(model, tokens, cache)   the tokens after them; cache = write(cache, new)
    hidden = peek(model, candidates, cache)     tokens that see the history and themselves alone

All three give what one forward of the model over the same tokens gives, up to rounding. A token is
stored once it is final. In retrieval that of the last event is not, because its time bias counts
from the time of the request: it peeks until the next event is there.
Source: M-FALCON, Zhai et al. 2024, section 3.4, algorithm 1.

The letter S: cached tokens that a row has room for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from gr_jax.data.batches.batch import Batch
from gr_jax.models.hstu import HstuBlock
from gr_jax.models.recommender import Recommender
from pallas_kernels import hstu_cached_attention

Attend = Callable[[HstuBlock, Array, Array, Array], Array]  # (block, q, k, v) -> [R, L, H, V]


class KvCache(NamedTuple):
    """Keys and values of one sequence per row, from its oldest token on; 0 beyond the length.

    Attributes:
      k: per block [R, H, S, A]. v: per block [R, H, S, V].
      time: [R, S], `Batch.time` of the tokens. length: [R], tokens so far.
    """

    k: tuple[Shaped[Array, "R H S A"], ...]
    v: tuple[Shaped[Array, "R H S V"], ...]
    time: Int[Array, "R S"]
    length: Int[Array, " R"]


def prefill(
    model: Recommender, batch: Batch, *, storage: str = ""
) -> tuple[Float[Array, "R L D"], KvCache]:
    """Last hidden states of histories and their cache, with room for S = L tokens.

    Args:
      model: of HSTU blocks.
      batch: one sequence a row, from its first column on; without candidates.
      storage: dtype of keys and values; "" = the one they are computed in.
    """
    real = batch.segment != 0
    keys, values = [], []

    def attend(block: HstuBlock, q: Array, k: Array, v: Array) -> Array:
        for stored, x in ((keys, k), (values, v)):
            x = _by_head(jnp.where(real[..., None, None], x, 0))
            stored.append(x.astype(storage or x.dtype))
        return block.attend(q, k, v, batch)

    hidden = _through_blocks(model, batch, attend)
    time = jnp.where(real, batch.time, 0).astype(jnp.int32)
    return hidden, KvCache(tuple(keys), tuple(values), time, real.sum(1).astype(jnp.int32))


def delta(
    model: Recommender, batch: Batch, cache: KvCache, *, implementation: str | None = None
) -> tuple[Float[Array, "R L D"], KvCache]:
    """Last hidden states of the tokens after the cached ones, and their keys and values alone.

    `write` adds these to the cache, in a program of its own that writes a few rows into memory
    that it may write to; XLA copies the whole cache where one program reads and writes it.

    Args:
      model: of HSTU blocks.
      batch: the new tokens, equally many in each row and no padding, with the positions and times
        that they have in the whole sequence.
      cache: with room for them: length + L <= S, which cannot be checked here.
      implementation: of `hstu_cached_attention`.
    """
    length, new = cache.length[:, None], jnp.arange(batch.item.shape[1])[None]
    among = jnp.broadcast_to(new, batch.item.shape)
    layers, keys, values = zip(cache.k, cache.v, strict=True), [], []

    def attend(block: HstuBlock, q: Array, k: Array, v: Array) -> Array:
        old_k, old_v = next(layers)
        new_k, new_v = _by_head(k), _by_head(v)
        keys.append(new_k.astype(old_k.dtype))
        values.append(new_v.astype(old_v.dtype))

        def see(k: Array, v: Array, ends: Array, times: Array, positions: Array) -> Array:
            return hstu_cached_attention(
                q,
                k,
                v,
                ends,
                max_length=block.max_length,
                window=block.config.window or None,
                **block.bias.arguments(block.query_times(batch), times),
                positions=positions,
                implementation=implementation,
            )

        of_history = see(old_k, old_v, length, cache.time, length + new)
        return of_history + see(new_k, new_v, among + 1, batch.time, among)

    hidden = _through_blocks(model, batch, attend)
    count = jnp.full_like(cache.length, batch.item.shape[1])
    return hidden, KvCache(tuple(keys), tuple(values), batch.time, count)


def write(cache: KvCache, new: KvCache) -> KvCache:
    """The cache with the tokens of `delta` behind the others of their row."""

    def layers(old: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(_write(a, b, cache.length, axis=1) for a, b in zip(old, new, strict=True))

    time = _write(cache.time, new.time, cache.length, axis=0)
    return KvCache(layers(cache.k, new.k), layers(cache.v, new.v), time, cache.length + new.length)


def peek(
    model: Recommender, batch: Batch, cache: KvCache, *, implementation: str | None = None
) -> Float[Array, "R L D"]:
    """Last hidden states of tokens that each see the cached history and themselves.

    Such tokens are candidates, or an event that is not final yet.

    Args:
      model: of HSTU blocks.
      batch: such tokens, padded with segment 0; those of a row have one position, the one after the
        history, and one `query_time`; that of the first token is read for all.
      cache: the histories, row by row.
      implementation: of `hstu_cached_attention`.
    """
    ends = cache.length[:, None]
    layers = zip(cache.k, cache.v, strict=True)

    def attend(block: HstuBlock, q: Array, k: Array, v: Array) -> Array:
        old_k, old_v = next(layers)
        return hstu_cached_attention(
            q,
            old_k,
            old_v,
            ends,
            max_length=block.max_length,
            window=block.config.window or None,
            **block.bias.arguments(block.query_times(batch)[:, :1], cache.time),
            positions=ends,
            own_k=k,
            own_v=v,
            own_times=None if block.bias.time is None else batch.time,
            implementation=implementation,
        )

    return _through_blocks(model, batch, attend)


def stack(rows: tuple[KvCache, ...]) -> KvCache:
    """One cache of the rows of several, which have room for equally many tokens."""
    if len(rows) == 1:
        return rows[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)


def unstack(cache: KvCache) -> tuple[KvCache, ...]:
    """One cache for each row."""
    leaves, tree = jax.tree.flatten(cache)
    return tuple(
        jax.tree.unflatten(tree, [leaf[row : row + 1] for leaf in leaves])
        for row in range(len(cache.length))
    )


def copy(cache: KvCache) -> KvCache:
    """The same in new memory."""
    return jax.tree.map(jnp.copy, cache)


def grow(cache: KvCache, room: int) -> KvCache:
    """The cache with room for more tokens."""

    def wider(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, room - x.shape[n] if n == axis else 0) for n in range(x.ndim)])

    keys, values = (tuple(wider(x, 2) for x in layers) for layers in (cache.k, cache.v))
    return KvCache(keys, values, wider(cache.time, 1), cache.length)


def _through_blocks(model: Recommender, batch: Batch, attend: Attend) -> Float[Array, "R L D"]:
    """The model's forward with `attend`, called block by block, in place of its attention."""
    if model.config.kind != "hstu":
        raise ValueError(
            f"only HSTU models can be cached, not {model.config.kind!r}: encode the whole history"
        )
    x = model.embeddings(batch, rate=0.0, dtype=jnp.dtype(model.config.compute_dtype), key=None)
    for block in model.blocks:
        assert isinstance(block, HstuBlock)
        x = block.with_attention(x, lambda q, k, v, block=block: attend(block, q, k, v))
    return x


def _by_head(x: Float[Array, "R L H W"]) -> Float[Array, "R H L W"]:
    return jnp.swapaxes(x, 1, 2)


def _write(store: Array, new: Array, length: Int[Array, " R"], axis: int) -> Array:
    """`store` with `new` from index `length` on, along this axis of a row.

    One update for each row, in place.
    """
    new = new.astype(store.dtype)
    for row in range(len(store)):
        start = [jnp.int32(0)] * store.ndim
        start[0], start[axis + 1] = jnp.int32(row), length[row]
        store = jax.lax.dynamic_update_slice(store, new[row : row + 1], start)
    return store
