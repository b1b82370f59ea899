"""HSTU attention for Hopper GPUs in Pallas Mosaic GPU: padding, the choice of blocks, gradients.

The kernels: `forward.py`, `backward.py`, `tables.py`; bulk copies, warpgroup matrix products, no
atomics.

Letters: R rows, L tokens in a row, H heads, A query and key width, V value width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import block_sizes
from pallas_kernels.arguments import Bias, Mask, Options
from pallas_kernels.mosaic_gpu.backward import key_gradients, query_gradient
from pallas_kernels.mosaic_gpu.bias_tiles import BIAS_TILE, bias_tiles
from pallas_kernels.mosaic_gpu.forward import forward
from pallas_kernels.mosaic_gpu.tables import table_gradients
from pallas_kernels.mosaic_gpu.tiles import MosaicBlocks, Static, Vectors, mosaic
from pallas_kernels.visible_keys import VisibleKeys, visible_keys

MAX_WIDTH = 256


def mosaic_gpu_attention(
    q, k, v, mask: Mask, bias: Bias, options: Options
) -> Float[Array, "R L H V"]:
    """HSTU attention as in `reference_attention`, of bfloat16 or float16.

    Widths are padded to multiples of 64 and rows to multiples of 128 tokens, so widths such as 25
    or 50 cost as much as 64. The bias is rounded to the dtype of v: it reaches the kernels as tiles
    that all heads read, of 2 bytes per pair of tokens at most max_length apart, per row, while the
    layer runs. The interpreter has the weights in shared memory.

    Raises NotImplementedError for other dtypes, wider heads or an older jax.
    """
    mosaic()
    if v.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
        names = f"{q.dtype}, {k.dtype}, {v.dtype}"
        raise NotImplementedError(
            f"q, k, v are {names}: the tensor cores of this kernel want all bfloat16 or float16"
        )
    if max(q.shape[3], v.shape[3]) > MAX_WIDTH:
        raise NotImplementedError(
            f"head widths {q.shape[3]}, {v.shape[3]}: at most {MAX_WIDTH}; 'xla' takes any"
        )
    length, width = q.shape[1], v.shape[3]
    blocks = _blocks(q, v, mask, bias, options)

    fill = -length % BIAS_TILE
    along_row = lambda x: None if x is None else jnp.pad(x, [(0, 0), (0, fill)])
    mask = Mask(jnp.pad(mask.segments, [(0, 0), (0, fill)]), along_row(mask.targets), mask.window)
    times = along_row(bias.query_times), along_row(bias.key_times)
    bias = bias._replace(query_times=times[0], key_times=times[1])
    scale, has_targets = float(options.scale), mask.targets is not None
    static = Static(scale, options.max_length, has_targets, blocks, options.interpret)

    def tiled(x: Float[Array, "R L H n"]) -> Float[Array, "R l H m"]:
        """Widths and lengths that the kernels take; 0 in place of padding, which may hold NaN."""
        x = jnp.pad(x, [(0, 0), (0, fill), (0, 0), (0, -x.shape[3] % 64)])
        return jnp.where(mask.segments[..., None, None] == 0, 0, x)

    out = _attention(static, *map(tiled, (q, k, v)), bias, mask.segments, visible_keys(mask))
    return out[:, :length, :, :width]  # pyright: ignore[reportIndexIssue]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    static: Static, q, k, v, bias: Bias, segments, visible: VisibleKeys
) -> Float[Array, "R L H V"]:
    return forward(q, k, v, visible, bias_tiles(visible, bias, static.max_length, q.dtype), static)


def _forward_rule(static: Static, *args):
    return _attention(static, *args), args


def _backward_rule(static: Static, args, d_out):
    q, k, v, bias, segments, visible = args
    vectors = Vectors(q, k, v, jnp.where(segments[..., None, None] == 0, 0, d_out))
    # Made again, rather than kept for each layer.
    tiles = bias_tiles(visible, bias, static.max_length, q.dtype)
    d_q = query_gradient(vectors, visible, tiles, static)
    d_k, d_v = key_gradients(vectors, visible, tiles, static)

    d_bias = Bias()
    if tiles is not None:
        sizes = tuple(0 if table is None else len(table) for table in bias[:2])
        times = bias.query_times, bias.key_times
        gradients = table_gradients(vectors, segments, visible, tiles, times, sizes, static)
        cast = lambda x, table: None if table is None else x.astype(table.dtype)
        d_bias = Bias(*(cast(x, table) for x, table in zip(gradients, bias[:2], strict=True)))
    return d_q, d_k, d_v, d_bias, None, None


_attention.defvjp(_forward_rule, _backward_rule)


def _blocks(q, v, mask: Mask, bias: Bias, options: Options) -> MosaicBlocks:
    """The blocks of the forward kernel: given, measured or by rule."""
    if options.blocks is not None:
        blocks = MosaicBlocks(*options.blocks)
    else:
        found = block_sizes.measured(block_sizes.key_of("pallas_mosaic_gpu", q, v))
        default = default_blocks(q.shape[3], v.shape[3], v.dtype.name)
        blocks = MosaicBlocks(**found) if found else default  # pyright: ignore[reportArgumentType]
        if not (bias.position_table is None and bias.time_table is None and mask.targets is None):
            blocks = smaller_blocks(blocks, max(q.shape[3], v.shape[3]))
    return blocks._replace(weights_in_registers=False) if options.interpret else blocks


def default_blocks(a: int, v: int, dtype: str) -> MosaicBlocks:
    """Forward blocks that fit shared memory and spill no register, by the compiler's report.

    Not by timings. a, v: head widths of q and v. dtype: of q, k and v.
    """
    del dtype  # two bytes always
    a, v = (-(-n // 64) * 64 for n in (a, v))
    if max(a, v) <= 128:
        return MosaicBlocks(128, 128, 2, True)
    if a != v:  # the output has shared memory of its own then
        return MosaicBlocks(64, 64, 2, True)
    return MosaicBlocks(128, 64, 2, False)


def smaller_blocks(blocks: MosaicBlocks, width: int) -> MosaicBlocks:
    """Blocks that leave registers for a bias tile or the longer mask of targets.

    width: the wider of A and V.
    """
    if width <= 64:
        return blocks
    if width <= 128:
        return blocks._replace(key_block=64)
    return blocks._replace(query_block=64, weights_in_registers=True)
