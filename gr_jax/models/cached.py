"""The sequence model on new tokens alone: keys and values of the history are stored, block by block, and reused.

    hidden, store = prefill(model, history)      one forward over the tokens so far
    hidden, new = delta(model, tokens, store)    those after them (delta forward); store = write(store, new) keeps them
    hidden = peek(model, candidates, store)      tokens that see the history and themselves, and leave no trace

All three give what one forward of the model over the same tokens gives, up to rounding. What is stored of a token has
to be final: in retrieval the last event's token is not, its time bias is of the moment that is asked about; it is
peeked at until the next event is there. Source: M-FALCON, Zhai et al. 2024, section 3.4, algorithm 1.

The letter S: cached tokens that a row has room for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from gr_jax.data.batches.batch import Batch
from gr_jax.models.hstu import HstuBlock
from gr_jax.models.recommender import Recommender
from pallas_kernels import hstu_attention, hstu_cached_attention


class Cached(NamedTuple):
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
) -> tuple[Float[Array, "R L D"], Cached]:
    """Last hidden states of histories and their cache, with room for S = L tokens.

    Args:
      model: of HSTU blocks.
      batch: one sequence a row, from its first column on; without candidates.
      storage: dtype of keys and values; "" = the one they are computed in.
    """
    real = batch.segment != 0
    kept = []

    def attend(block: HstuBlock, q: Array, k: Array, v: Array) -> Array:
        kept.append([_by_head(jnp.where(real[..., None, None], x, 0), storage) for x in (k, v)])
        name, arguments = block.config.attention or None, block.attention_arguments(batch)
        return hstu_attention(q, k, v, batch.segment, implementation=name, **arguments)

    hidden = _through_blocks(model, batch, attend)
    keys, values = zip(*kept, strict=True)
    time = jnp.where(real, batch.time, 0).astype(jnp.int32)
    return hidden, Cached(keys, values, time, real.sum(1).astype(jnp.int32))


def delta(
    model: Recommender, batch: Batch, cached: Cached, *, implementation: str | None = None
) -> tuple[Float[Array, "R L D"], Cached]:
    """Last hidden states of the tokens that follow the cached ones, and their keys and values alone, for `write`.

    What is read here and written there can be two programs, of which the second one only writes a few rows into memory
    that it may write to; XLA copies the whole cache where one program does both.

    Args:
      model: of HSTU blocks.
      batch: the new tokens, as many in each row and no padding, with the positions and times that they have in the
        whole sequence.
      cached: with room for them: length + L <= S, which cannot be checked here.
      implementation: of `hstu_cached_attention`.
    """
    length, new = cached.length[:, None], jnp.arange(batch.item.shape[1])[None]
    among = jnp.broadcast_to(new, batch.item.shape)
    layers, kept = zip(cached.k, cached.v, strict=True), []

    def attend(block: HstuBlock, q: Array, k: Array, v: Array) -> Array:
        (old_k, old_v), new_k, new_v = next(layers), _by_head(k, ""), _by_head(v, "")
        kept.append((new_k.astype(old_k.dtype), new_v.astype(old_v.dtype)))
        to_old, to_new = (block.attention_arguments(batch) for _ in range(2))
        if block.bias.time is not None:
            to_old["key_times"] = cached.time
        see = functools.partial(hstu_cached_attention, q, implementation=implementation)
        of_history = see(old_k, old_v, length, positions=length + new, **to_old)
        return of_history + see(new_k, new_v, among + 1, positions=among, **to_new)

    hidden = _through_blocks(model, batch, attend)
    keys, values = zip(*kept, strict=True)
    return hidden, Cached(
        keys, values, batch.time, jnp.full_like(cached.length, batch.item.shape[1])
    )


def write(cached: Cached, new: Cached) -> Cached:
    """The cache with the tokens of `delta` behind the others of their row."""
    layers = lambda old, of: tuple(
        _write(a, b, cached.length, axis=1) for a, b in zip(old, of, strict=True)
    )
    time = _write(cached.time, new.time, cached.length, axis=0)
    return Cached(
        layers(cached.k, new.k), layers(cached.v, new.v), time, cached.length + new.length
    )


def peek(
    model: Recommender, batch: Batch, cached: Cached, *, implementation: str | None = None
) -> Float[Array, "R L D"]:
    """Last hidden states of tokens that each see the cached history and themselves: candidates, or a token to come.

    Args:
      model: of HSTU blocks.
      batch: such tokens, padded with segment 0; those of a row have one position, the one after the history, and one
        `query_time`; that of the first token is read for all.
      cached: the histories, row by row.
      implementation: of `hstu_cached_attention`.
    """
    ends = cached.length[:, None]
    layers = zip(cached.k, cached.v, strict=True)

    def attend(block: HstuBlock, q: Array, k: Array, v: Array) -> Array:
        arguments = block.attention_arguments(batch)
        own_times = arguments["key_times"]
        if own_times is not None:
            asked = arguments["query_times"][:, :1]
            arguments |= {"query_times": asked, "key_times": cached.time}
        own = {"own_k": k, "own_v": v, "own_times": own_times}
        return hstu_cached_attention(
            *(q, *next(layers), ends),
            positions=ends,
            implementation=implementation,
            **arguments,
            **own,
        )

    return _through_blocks(model, batch, attend)


def stack(rows: tuple[Cached, ...]) -> Cached:
    """One cache of the rows of several, which have room for equally many tokens."""
    return (
        rows[0] if len(rows) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)
    )


def unstack(cached: Cached) -> tuple[Cached, ...]:
    """One cache for each row."""
    rows = len(cached.length)
    leaves, tree = jax.tree.flatten(cached)
    return tuple(
        jax.tree.unflatten(tree, [leaf[row : row + 1] for leaf in leaves]) for row in range(rows)
    )


def _through_blocks(
    model: Recommender, batch: Batch, attend: Callable[..., Array]
) -> Float[Array, "R L D"]:
    """The model's forward with `attend(block, q, k, v)`, called block by block, in place of its attention."""
    x = model.embeddings(batch, rate=0.0, dtype=jnp.dtype(model.config.compute_dtype), key=None)
    for block in model.blocks:
        if not isinstance(block, HstuBlock):
            raise ValueError(
                f"only HSTU models can be cached, here {model.config.kind!r}: encode the whole history"
            )
        x = block.around(x, functools.partial(attend, block))
    return x


def _by_head(x: Float[Array, "R L H W"], dtype: str) -> Shaped[Array, "R H L W"]:
    return jnp.swapaxes(x, 1, 2).astype(dtype or x.dtype)


def _write(store: Array, new: Array, length: Int[Array, " R"], axis: int) -> Array:
    """`store` with `new` from index `length` on, along this axis of a row; one update for each row, in place."""
    new = new.astype(store.dtype)
    for row in range(len(store)):
        start = [jnp.int32(0)] * store.ndim
        start[0], start[axis + 1] = jnp.int32(row), length[row]
        store = jax.lax.dynamic_update_slice(store, new[row : row + 1], start)
    return store
