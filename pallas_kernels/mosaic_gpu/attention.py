"""HSTU attention for Hopper GPUs in Pallas Mosaic GPU: bulk copies, warpgroup matrix products, no atomics.

A program owns a block of queries of one head, keeps it in shared memory, and walks the key blocks that hold keys it
sees. One warpgroup copies keys, values and bias tiles ahead; the others issue the scores of the next key block before
the output of the current one, so that the tensor cores work while SiLU is computed. Without a softmax there is
nothing to rescale, and one accumulator stays in registers.

Letters: R rows, L tokens in a row, H heads, A query and key width, V value width, P position-table entries.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import block_sizes, dispatch
from pallas_kernels.mosaic_gpu.backward import key_gradients, query_gradient
from pallas_kernels.mosaic_gpu.bias_tiles import BIAS_TILE, BiasTiles, bias_part, bias_tiles
from pallas_kernels.mosaic_gpu.tables import table_gradients
from pallas_kernels.mosaic_gpu.tiles import (
    TILE_ROWS,
    MosaicBlocks,
    Options,
    fill,
    half_scores,
    keep,
    kept,
    launch,
    load_once,
    lowered_once,
    masked,
    matrix_tiles,
    mosaic,
    product,
    release,
    release_loaded,
    ring,
    schedule,
    silu,
    split_warpgroups,
    store,
    wait_for,
)
from pallas_kernels.visible_keys import VisibleKeys, visible_keys

MAX_WIDTH = 256


def mosaic_gpu_attention(
    q: Float[Array, "R L H A"],
    k: Float[Array, "R L H A"],
    v: Float[Array, "R L H V"],
    segments: Int[Array, "R L"],
    *,
    max_length: int,
    scale: float = 1.0,
    position_table: Float[Array, " P"] | None = None,
    time_table: Float[Array, " buckets"] | None = None,
    query_times: Int[Array, "R L"] | None = None,
    key_times: Int[Array, "R L"] | None = None,
    targets: Bool[Array, "R L"] | None = None,
    contexts: Bool[Array, "R L"] | None = None,
    window: int | None = None,
    full_window_tail: int = 0,
    interpret: bool = False,
    blocks: MosaicBlocks | None = None,
) -> Float[Array, "R L H V"]:
    """Returns HSTU attention as `reference_attention` does; arguments as in `pallas_kernels.hstu_attention`.

    q, k, v: bfloat16 or float16. Widths are padded to multiples of 64 and rows to multiples of 128 tokens, so widths
        such as 25 or 50 cost as much as 64.
    The bias is rounded to that dtype: it reaches the kernels as tiles that all heads read, of 2 bytes per pair of
        tokens at most max_length apart, per row, while the layer runs.
    interpret: runs the kernels in the Mosaic GPU interpreter, with the weights in shared memory.
    blocks: sizes of the forward kernel; None = by the shipped table.
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
    if blocks is None:
        kind = dispatch.current_device().kind
        chosen = block_sizes.choose(
            "pallas_mosaic_gpu", q.shape[3], width, length, v.dtype.name, kind
        )
        blocks = MosaicBlocks(*chosen)
        if not (position_table is None and time_table is None and targets is None):
            blocks = smaller_blocks(blocks, max(q.shape[3], width))
    if interpret:
        blocks = blocks._replace(weights_in_registers=False)
    fill = -length % BIAS_TILE
    along_row = lambda x: None if x is None else jnp.pad(x, [(0, 0), (0, fill)])
    segments = jnp.pad(segments, [(0, 0), (0, fill)])
    targets, contexts = (along_row(x) for x in (targets, contexts))
    times = None if time_table is None else (along_row(query_times), along_row(key_times))
    visible = visible_keys(
        segments, targets, contexts, window=window, full_window_tail=full_window_tail
    )
    options = Options(
        float(scale), max_length, targets is not None, contexts is not None, blocks, interpret
    )

    def tiled(x: Float[Array, "R L H n"]) -> Float[Array, "R l H m"]:
        """Widths and lengths that the kernels take; 0 in place of padding, which may hold NaN."""
        x = jnp.pad(x, [(0, 0), (0, fill), (0, 0), (0, -x.shape[3] % 64)])
        return jnp.where(segments[..., None, None] == 0, 0, x)

    out = _attention(
        options,
        *map(tiled, (q, k, v)),
        position_table,
        time_table,
        segments,
        contexts,
        visible,
        times,
    )
    return out[:, :length, :, :width]  # pyright: ignore[reportIndexIssue]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    options, q, k, v, position_table, time_table, segments, contexts, visible, times
) -> Float[Array, "R L H V"]:
    bias = _bias(options, q.dtype, position_table, time_table, visible, times)
    return forward(q, k, v, visible, bias, options)


def _bias(options, dtype, position_table, time_table, visible, times) -> BiasTiles | None:
    query_times, key_times = times or (None, None)
    tables = position_table, time_table
    return bias_tiles(
        visible,
        *tables,
        query_times,
        key_times,
        max_length=options.max_length,
        ahead=options.ahead,
        dtype=dtype,
    )


def _forward_rule(options, *args):
    return _attention(options, *args), args


def _backward_rule(options, args, d_out):
    q, k, v, position_table, time_table, segments, contexts, visible, times = args
    d_out = jnp.where(segments[..., None, None] == 0, 0, d_out)
    # again, rather than kept for each layer
    bias = _bias(options, q.dtype, position_table, time_table, visible, times)
    d_q = query_gradient(q, k, v, d_out, visible, bias, options)
    d_k, d_v = key_gradients(q, k, v, d_out, visible, bias, options)
    d_position = d_time = None
    if bias is not None:
        positions, buckets = (0 if x is None else len(x) for x in (position_table, time_table))
        query_times, key_times = times or (None, None)
        d_position, d_time = table_gradients(
            q,
            k,
            v,
            d_out,
            segments,
            contexts,
            visible,
            bias,
            query_times,
            key_times,
            positions,
            buckets,
            options,
        )
    cast = lambda gradient, table: None if table is None else gradient.astype(table.dtype)
    d_tables = cast(d_position, position_table), cast(d_time, time_table)
    return (
        d_q,
        d_k,
        d_v,
        *d_tables,
        *jax.tree.map(lambda _: None, (segments, contexts, visible, times)),
    )


_attention.defvjp(_forward_rule, _backward_rule)


def default_blocks(a: int, v: int, dtype: str) -> MosaicBlocks:
    """Returns forward blocks that fit shared memory and spill no register, by the compiler's report, not by timings.

    a, v: head widths of q and v. dtype: of q, k and v.
    """
    del dtype  # two bytes always
    a, v = (-(-n // 64) * 64 for n in (a, v))
    if max(a, v) <= 128:
        return MosaicBlocks(128, 128, 2, True)
    if a != v:  # the output has shared memory of its own then
        return MosaicBlocks(64, 64, 2, True)
    return MosaicBlocks(128, 64, 2, False)


def smaller_blocks(blocks: MosaicBlocks, width: int) -> MosaicBlocks:
    """Returns blocks that leave registers for a bias tile or the longer mask of targets.

    width: the wider of A and V.
    """
    if width <= 64:
        return blocks
    if width <= 128:
        return blocks._replace(key_block=64)
    return blocks._replace(query_block=64, weights_in_registers=True)


@lowered_once
def forward(
    q, k, v, visible: VisibleKeys, bias: BiasTiles | None, options: Options
) -> Float[Array, "R L H V"]:
    """Returns the output of padded inputs: L a multiple of 128, A and V of 64, no NaN in v."""
    plgpu = mosaic()
    rows, length, heads, width = q.shape
    value_width = v.shape[3]
    block_q, block_k, stages, in_registers = options.blocks
    warpgroups, blocks = block_q // TILE_ROWS, length // block_q
    work = schedule(visible, block_q, block_k)
    scores_shape = (TILE_ROWS, block_k)

    def body(
        q_gmem, k_gmem, v_gmem, first_gmem, end_gmem, ranges_gmem, order_gmem, unmasked_gmem, *rest
    ):
        (
            *bias_gmem,
            out_gmem,
            q_smem,
            out_smem,
            k_ring,
            v_ring,
            bias_ring,
            weights_smem,
            q_barrier,
        ) = rest
        program = lax.axis_index("program")
        head, item = lax.rem(program, heads), order_gmem[lax.div(program, heads)]
        row, block = lax.div(item, blocks), lax.rem(item, blocks)
        a, b, c, d = (ranges_gmem[row, block, n] for n in range(4))
        steps = (b - a) + (d - c)
        key_block = lambda n: jnp.where(n < b - a, a + n, c - (b - a) + n)

        def copy():
            keys = lambda n: pl.ds(key_block(n) * block_k, block_k)
            sources = [(k_ring, lambda n: k_gmem.at[row, keys(n), head])]
            if bias is not None:
                part = lambda n: bias_part(
                    bias_gmem, row, block * block_q, key_block(n) * block_k, block_q, block_k
                )
                sources.append((bias_ring, part))
            fill(steps, sources, later=[(v_ring, lambda n: v_gmem.at[row, keys(n), head])])

        def compute(warpgroup):
            tile = block * warpgroups + warpgroup
            queries = pl.ds(tile * TILE_ROWS, TILE_ROWS)
            q_tile = q_smem.at[warpgroup]
            out_tile = q_tile if out_smem is None else out_smem.at[warpgroup]
            weights_tile = None if in_registers else weights_smem.at[warpgroup]
            along_queries = plgpu.Layout.WGMMA.reduce(1)
            first, end = (
                plgpu.load(x.at[row, queries], layout=along_queries, optimized=False)
                for x in (first_gmem, end_gmem)
            )
            unmasked = unmasked_gmem[row, tile, 0], unmasked_gmem[row, tile, 1]

            def weights(products, n):
                bias_tile = None
                if bias is not None:
                    bias_tile = wait_for(bias_ring, n).at[
                        pl.ds(pl.multiple_of(warpgroup * TILE_ROWS, 64), TILE_ROWS)
                    ]
                values = silu(half_scores(products, options.scale, bias_tile))
                if bias is not None:
                    release_loaded(bias_ring, tile=n)
                block_n = key_block(n)

                def mask(x):
                    query = tile * TILE_ROWS if options.targets else None
                    return masked([x], first, end, query, block_n * block_k, 0)[0]

                seen = (unmasked[0] <= block_n) & (block_n < unmasked[1])
                return lax.cond(seen, lambda x: x, mask, values)

            def attend():
                keys = wait_for(k_ring, 0)
                scores = product(q_tile, keys.transpose((1, 0)), scores_shape)
                release(k_ring, tile=0)
                held = keep(weights(scores, 0).astype(v.dtype), weights_tile)

                def accumulate(out):
                    def step(n, held):
                        left = kept(held, weights_tile)
                        keys = wait_for(k_ring, n)

                        def multiply(scores):
                            plgpu.wgmma(scores, q_tile, keys.transpose((1, 0)))
                            plgpu.wgmma(out, left, wait_for(v_ring, n - 1))
                            return plgpu.wgmma_accumulator_load(
                                scores, wait_n=1
                            )  # the output may be under way still

                        scores = pl.run_scoped(multiply, plgpu.ACC(scores_shape, jnp.float32))
                        release(k_ring, tile=n)
                        values_n = weights(scores, n)
                        plgpu.wgmma_wait(0)
                        release(v_ring, tile=n - 1)
                        return keep(
                            values_n.astype(v.dtype), weights_tile
                        )  # not while a product reads the last ones

                    last = lax.fori_loop(1, steps, step, held)
                    plgpu.wgmma(out, kept(last, weights_tile), wait_for(v_ring, steps - 1))
                    return out[...]

                return pl.run_scoped(accumulate, plgpu.ACC((TILE_ROWS, value_width), jnp.float32))

            @pl.when(steps > 0)
            def _():
                load_once([(q_gmem.at[row, queries, head], q_tile)], q_barrier.at[warpgroup])
                store(
                    [
                        (
                            attend() * (1 / options.max_length),
                            out_tile,
                            out_gmem.at[row, queries, head],
                        )
                    ]
                )

            @pl.when(steps == 0)
            def _():
                zeros = plgpu.layout_cast(
                    jnp.zeros((TILE_ROWS, value_width), jnp.float32), plgpu.Layout.WGMMA
                )
                store([(zeros, out_tile, out_gmem.at[row, queries, head])])

        split_warpgroups(warpgroups, compute, copy)

    kernel = launch(
        body,
        "hstu_forward",
        rows * blocks * heads,
        warpgroups,
        out_type=jax.ShapeDtypeStruct(v.shape, v.dtype),
        scratch_types=[
            matrix_tiles((warpgroups, TILE_ROWS, width), v.dtype),
            None
            if width == value_width
            else matrix_tiles((warpgroups, TILE_ROWS, value_width), v.dtype),
            ring(matrix_tiles((stages, block_k, width), v.dtype), warpgroups),
            ring(matrix_tiles((stages, block_k, value_width), v.dtype), warpgroups),
            None
            if bias is None
            else ring(matrix_tiles((stages, block_q, block_k), bias.tiles.dtype), warpgroups),
            None if in_registers else matrix_tiles((warpgroups, TILE_ROWS, block_k), v.dtype),
            plgpu.Barrier(num_barriers=warpgroups),
        ],
        interpret=options.interpret,
    )
    return kernel(q, k, v, visible.first, visible.end, *work, *(bias or ()))
