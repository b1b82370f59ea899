"""HSTU attention by a Triton kernel that is called through jax-triton.

It is there should Pallas lose its Triton backend. Forward only. jax-triton and triton are imported
when the op is called: they exist for NVIDIA GPUs on Linux only.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import block_sizes
from pallas_kernels.arguments import Bias, Mask, Options
from pallas_kernels.block_sizes import Blocks
from pallas_kernels.visible_keys import VisibleKeys, key_block_ranges, longest_first, visible_keys


class _Static(NamedTuple):
    """Facts that are known when the kernel is compiled."""

    scale: float
    max_length: int
    blocks: Blocks
    compute_capability: int | None


def default_blocks(a: int, v: int, dtype: str) -> Blocks:
    """Block sizes that compile for sm_90a without register spills."""
    widest = max(a, v)
    if dtype == "float32":
        return Blocks(64, 32, 4, 2) if widest <= 64 else Blocks(64, 32, 8, 1)
    return Blocks(64, 64, 4, 2) if widest <= 64 else Blocks(64, 64, 8, 2 if widest <= 128 else 1)


def jax_triton_attention(
    q, k, v, mask: Mask, bias: Bias, options: Options, compute_capability: int | None = None
) -> Float[Array, "R L H V"]:
    """HSTU attention as in `reference_attention`; its gradient raises NotImplementedError.

    compute_capability: 90 to lower for an H100 on a machine without a GPU.
    Float32 products are made of three tf32 products each.
    """
    if options.interpret:
        raise NotImplementedError("jax-triton has no interpreter: it runs on an NVIDIA GPU only")
    blocks = options.blocks
    if blocks is None:
        found = block_sizes.measured(block_sizes.key_of("jax_triton", q, v))
        default = default_blocks(q.shape[3], v.shape[3], v.dtype.name)
        blocks = Blocks(**found) if found else default
    static = _Static(options.scale, options.max_length, Blocks(*blocks), compute_capability)
    return _forward(static, q, k, v, bias, visible_keys(mask))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(static: _Static, q, k, v, bias: Bias, visible: VisibleKeys):
    jax_triton: Any = importlib.import_module("jax_triton")

    from pallas_kernels.jax_triton.kernel import forward_kernel

    rows, length, heads, a = q.shape
    blocks, v_width = static.blocks, v.shape[3]
    ranges = key_block_ranges(visible, blocks.query_block, blocks.key_block)
    work = ranges[..., 1] - ranges[..., 0] + ranges[..., 3] - ranges[..., 2]

    unused = jnp.zeros(1, jnp.int32)
    or_unused = lambda x: unused if x is None else x
    size = lambda table: 0 if table is None else len(table)
    float32 = lambda table: None if table is None else table.astype(jnp.float32)
    lanes = lambda width: max(16, 1 << (width - 1).bit_length())
    extra: dict[str, Any] = {}
    if static.compute_capability is not None:
        extra["compute_capability"] = static.compute_capability

    return jax_triton.triton_call(
        *(q, k, v, visible.first, visible.end, or_unused(visible.position)),
        *(ranges, longest_first(work), or_unused(bias.query_times), or_unused(bias.key_times)),
        *(or_unused(float32(x)) for x in (bias.position_table, bias.time_table)),
        kernel=forward_kernel,
        out_shape=jax.ShapeDtypeStruct(v.shape, v.dtype),
        grid=(rows * ranges.shape[1] * heads,),
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
        scale=float(static.scale),
        inverse_length=1.0 / static.max_length,
        length=length,
        heads=heads,
        a=a,
        v_width=v_width,
        positions=size(bias.position_table),
        buckets=size(bias.time_table),
        by_index=visible.position is None,
        query_block=blocks.query_block,
        key_block=blocks.key_block,
        a_lanes=lanes(a),
        v_lanes=lanes(v_width),
        precision="tf32x3" if v.dtype == jnp.float32 else "tf32",
        **extra,
    )


def _forward_rule(static: _Static, *args):
    raise NotImplementedError(
        "jax_triton has no gradient yet: use implementation='pallas_triton' to train"
    )


_forward.defvjp(_forward_rule, lambda static, saved, d_out: ())
