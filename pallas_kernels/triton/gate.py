"""u * LN(attended) as a pair of Pallas kernels on the Triton backend.

Each array is read once and written once. A program has some whole rows in registers, so nothing is
added across programs. Letters: T tokens, F columns.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float

from pallas_kernels.block_sizes import Blocks
from pallas_kernels.triton import tile

ENTRIES = 4096  # of a tile: 32 in each of 128 threads


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def triton_gate(
    u: Float[Array, "R L F"], attended: Float[Array, "R L F"], eps: float, interpret: bool
) -> Float[Array, "R L F"]:
    """`elementwise.normalised_gate`; the backward pass recomputes the normalised rows."""
    return _launch(_forward_kernel, (u, attended), 1, eps, interpret, "hstu_gate")[0]


def _forward(u, attended, eps, interpret):
    return triton_gate(u, attended, eps, interpret), (u, attended)


def _backward(eps, interpret, kept, d_out):
    return _launch(_backward_kernel, (*kept, d_out), 2, eps, interpret, "hstu_d_gate")


triton_gate.defvjp(_forward, _backward)


def _launch(kernel, arrays, outputs: int, eps: float, interpret: bool, name: str):
    """The outputs of a kernel over blocks of tokens, in number `outputs`, like the first arrays."""
    shape, width = arrays[0].shape, arrays[0].shape[-1]
    arrays = [x.reshape(-1, width) for x in arrays]
    tokens = len(arrays[0])
    size = max(1, min(pl.next_power_of_2(tokens), ENTRIES // tile.lane_width(width)))
    kernel = functools.partial(kernel, eps=eps, size=size)
    out = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays[:outputs]]
    programs, blocks = -(-tokens // size), Blocks(size, size, 4, 1)
    found = tile.launch(kernel, arrays, out, programs, blocks, interpret, name)
    return tuple(x.reshape(shape) for x in found)


def _forward_kernel(u_ref, attended_ref, out_ref, *, eps: float, size: int):
    at, mask = _place(u_ref, size)
    u = _load(u_ref, at, mask)
    normal, _ = _normalise(_load(attended_ref, at, mask), mask, u_ref.shape[1], eps)
    plt.store(out_ref.at[at], (u * normal.astype(u_ref.dtype)).astype(out_ref.dtype), mask=mask)


def _backward_kernel(
    u_ref, attended_ref, d_out_ref, d_u_ref, d_attended_ref, *, eps: float, size: int
):
    width = u_ref.shape[1]
    at, mask = _place(u_ref, size)
    u, d_out = _load(u_ref, at, mask), _load(d_out_ref, at, mask)
    normal, inverse = _normalise(_load(attended_ref, at, mask), mask, width, eps)
    plt.store(d_u_ref.at[at], (d_out * normal.astype(u_ref.dtype)).astype(d_u_ref.dtype), mask=mask)
    d_normal = (d_out * u).astype(jnp.float32)
    mean = jnp.sum(d_normal, axis=1, keepdims=True) / width
    along = jnp.sum(d_normal * normal, axis=1, keepdims=True) / width
    d_attended = inverse * (d_normal - mean - normal * along)
    plt.store(d_attended_ref.at[at], d_attended.astype(d_attended_ref.dtype), mask=mask)


def _place(ref, size: int):
    """Index of this program's tile [size, lanes] in a [T, F] reference, and its mask."""
    (tokens, width), lanes = ref.shape, tile.lane_width(ref.shape[1])
    start = pl.program_id(0) * size
    rows, columns = start + jnp.arange(size), jnp.arange(lanes)
    mask = jnp.broadcast_to((rows < tokens)[:, None] & (columns < width)[None, :], (size, lanes))
    # The int32 makes the slice dynamic: jax 0.12 refuses a static one that is wider than the array.
    return (pl.ds(start, size), pl.ds(jnp.int32(0), lanes)), mask


def _load(ref, at, mask):
    return plt.load(ref.at[at], mask=mask, other=0.0)


def _normalise(x, mask, width: int, eps: float):
    """`elementwise.normalise` of the rows of a tile, 0 in the lanes beyond the width."""
    x = x.astype(jnp.float32)
    centred = jnp.where(mask, x - jnp.sum(x, axis=1, keepdims=True) / width, 0.0)
    inverse = jax.lax.rsqrt(jnp.sum(centred * centred, axis=1, keepdims=True) / width + eps)
    return centred * inverse, inverse
