"""The elementwise stages around attention, with backward passes that recompute what they need.

    normalised_projection   SiLU(LN(x) W), the queries, keys, values and gates of a layer
    normalised_gate         u * LN(attended)

Plain differentiation keeps the normalised rows, the products before SiLU and its sigmoid of every
layer until the backward pass. Here only the inputs are kept, which other parts of the layer keep as
well. On a CPU XLA drops the barrier between the two passes and makes the same program of both ways.

Letters: R rows, L tokens in a row, D and F widths.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import dispatch


def normalise(
    x: Float[Array, "*T F"], eps: float
) -> tuple[Float[Array, "*T F"], Float[Array, "*T 1"]]:
    """(x - mean) / sqrt(variance + eps) along the last axis and that 1 / sqrt(..).

    Both in float32 or wider.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return centred * inverse, inverse


def normalise_gradient(
    normal: Float[Array, "*T F"], inverse: Float[Array, "*T 1"], d_normal: Float[Array, "*T F"]
) -> Float[Array, "*T F"]:
    """The gradient of the x of `normalise`, from its results and the gradient of the first one."""
    along = normal * (d_normal * normal).mean(-1, keepdims=True)
    return inverse * (d_normal - d_normal.mean(-1, keepdims=True) - along)


def normalised_projection(
    x: Float[Array, "R L D"], weight: Float[Array, "D F"], eps: float
) -> Float[Array, "R L F"]:
    """SiLU(LN(x) weight) in the dtype of x, without affine parameters in LN.

    The backward pass makes the product with the weight once more.
    Source: arXiv:2402.17152 eq. 1.
    """
    return _projection(x, weight, eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _projection(x, weight, eps):
    return jax.nn.silu(normalise(x, eps)[0].astype(x.dtype) @ weight)


def _projection_forward(x, weight, eps):
    return _projection(x, weight, eps), (x, weight)


def _projection_backward(eps, kept, d_out):
    # Else XLA finds the forward pass here and keeps its results; and without d_out does this right
    # after it.
    (x, weight), d_out = jax.lax.optimization_barrier((kept, d_out))
    normal, inverse = normalise(x, eps)
    rounded = normal.astype(x.dtype)
    product = (rounded @ weight).astype(normal.dtype)
    gate = jax.nn.sigmoid(product)
    d_product = (d_out * (gate * (1 + product * (1 - gate)))).astype(x.dtype)
    d_weight = jnp.einsum("rld,rlf->df", rounded, d_product)
    d_x = normalise_gradient(normal, inverse, (d_product @ weight.T).astype(normal.dtype))
    return d_x.astype(x.dtype), d_weight.astype(weight.dtype)


_projection.defvjp(_projection_forward, _projection_backward)


def normalised_gate(
    u: Float[Array, "R L F"],
    attended: Float[Array, "R L F"],
    eps: float,
    *,
    implementation: str | None = None,
    interpret: bool = False,
    row_axis: str = "data",
    column_axis: str = "model",
) -> Float[Array, "R L F"]:
    """u * LN(attended) in the dtype of u, without affine parameters in LN.

    implementation: that of the attention before it: "pallas_triton", and None where that would
        choose it, runs a Pallas Triton kernel; with any other name XLA computes the gate.
    interpret: run the kernel in its interpreter, on any device.
    row_axis: axis of the ambient mesh over which rows are split.
    column_axis: where the mesh splits columns over devices, rows do not lie on one of them, and XLA
        computes the gate.
    Raises NotImplementedError where "pallas_triton" cannot run. Source: arXiv:2402.17152 eq. 3.
    """
    device, width = dispatch.current_device(), 1  # any width: a row is in one tile
    name = implementation or dispatch.choose(device, u.dtype.name, width)
    if name != "pallas_triton" or jax.sharding.get_abstract_mesh().shape.get(column_axis, 1) > 1:
        return _xla_gate(u, attended, eps)
    reason = dispatch.why_not(name, device, u.dtype.name, width)
    if reason and not interpret:
        raise NotImplementedError(f"implementation={name!r} cannot run here: {reason}")
    from pallas_kernels.triton.gate import triton_gate

    gate = lambda u, attended: triton_gate(u, attended, eps, interpret)
    return dispatch.per_shard(gate, {}, {"u": u, "attended": attended}, {}, row_axis, None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _xla_gate(u, attended, eps):
    return u * normalise(attended, eps)[0].astype(u.dtype)


def _gate_forward(u, attended, eps):
    return _xla_gate(u, attended, eps), (u, attended)


def _gate_backward(eps, kept, d_out):
    # As in _projection_backward.
    (u, attended), d_out = jax.lax.optimization_barrier((kept, d_out))
    normal, inverse = normalise(attended, eps)
    d_attended = normalise_gradient(normal, inverse, (d_out * u).astype(normal.dtype))
    return d_out * normal.astype(u.dtype), d_attended.astype(attended.dtype)


_xla_gate.defvjp(_gate_forward, _gate_backward)
