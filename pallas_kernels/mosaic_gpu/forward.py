"""The forward kernel of the Mosaic GPU attention.

A program owns a block of queries of one head, keeps it in shared memory, and walks the key blocks
that hold keys it sees. One warpgroup copies keys, values and bias tiles ahead; the others issue the
scores of the next key block before the output of the current one, so that the tensor cores work
while SiLU is computed. Without a softmax there is nothing to rescale, and one accumulator stays in
registers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.mosaic_gpu.bias_tiles import BiasTiles, bias_part
from pallas_kernels.mosaic_gpu.programs import (
    Schedule,
    half_of,
    half_scores,
    query_mask,
    query_program,
    schedule,
    silu,
)
from pallas_kernels.mosaic_gpu.tiles import (
    TILE_ROWS,
    Static,
    fill,
    keep,
    kept,
    launch,
    lowered_once,
    matrix_tiles,
    mosaic,
    product,
    release,
    release_loaded,
    ring,
    split_warpgroups,
    store_results,
    wait_for,
)
from pallas_kernels.visible_keys import VisibleKeys


@lowered_once
def forward(
    q, k, v, visible: VisibleKeys, bias: BiasTiles | None, static: Static
) -> Float[Array, "R L H V"]:
    """The output of padded inputs: L a multiple of 128, A and V of 64, no NaN in v."""
    plgpu = mosaic()
    rows, length, heads, width = q.shape
    value_width = v.shape[3]
    block_q, block_k, stages, in_registers = static.blocks
    warpgroups, blocks = block_q // TILE_ROWS, length // block_q
    work = schedule(visible, block_q, block_k)
    scores_shape = (TILE_ROWS, block_k)

    def body(q_gmem, k_gmem, v_gmem, *refs):
        bounds_gmem, work_gmem, refs = refs[:2], Schedule(*refs[2:5]), refs[5:]
        *bias_gmem, out_gmem = refs[:-7]
        q_smem, out_smem, k_ring, v_ring, bias_ring, weights_smem, q_barrier = refs[-7:]
        row, block, head, steps, key_block = query_program(work_gmem, heads, blocks)

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
            mask = query_mask(bounds_gmem, work_gmem, row, tile, block_k, static)

            def weights(products, n):
                bias_tile = None
                if bias is not None:
                    bias_tile = wait_for(bias_ring, n).at[half_of(warpgroup)]
                values = silu(half_scores(products, static.scale, bias_tile))
                if bias is not None:
                    release_loaded(bias_ring, tile=n)
                return mask(values, key_block(n))

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
                            # The output may be under way still.
                            return plgpu.wgmma_accumulator_load(scores, wait_n=1)

                        scores = pl.run_scoped(multiply, plgpu.ACC(scores_shape, jnp.float32))
                        release(k_ring, tile=n)
                        values_n = weights(scores, n)
                        plgpu.wgmma_wait(0)
                        release(v_ring, tile=n - 1)
                        # Not while a product reads the last ones.
                        return keep(values_n.astype(v.dtype), weights_tile)

                    last = lax.fori_loop(1, steps, step, held)
                    plgpu.wgmma(out, kept(last, weights_tile), wait_for(v_ring, steps - 1))
                    return out[...]

                return pl.run_scoped(accumulate, plgpu.ACC((TILE_ROWS, value_width), jnp.float32))

            store_results(
                steps,
                [(q_gmem.at[row, queries, head], q_tile)],
                q_barrier.at[warpgroup],
                lambda: [attend() * (1 / static.max_length)],
                [((TILE_ROWS, value_width), out_tile, out_gmem.at[row, queries, head])],
            )

        split_warpgroups(warpgroups, compute, copy)

    own = lambda n: matrix_tiles((warpgroups, TILE_ROWS, n), v.dtype)
    queue = lambda *shape: ring(matrix_tiles((stages, *shape), v.dtype), warpgroups)
    kernel = launch(
        body,
        "hstu_forward",
        rows * blocks * heads,
        warpgroups,
        out_type=jax.ShapeDtypeStruct(v.shape, v.dtype),
        scratch_types=[
            own(width),
            None if width == value_width else own(value_width),
            queue(block_k, width),
            queue(block_k, value_width),
            None if bias is None else queue(block_q, block_k),
            None if in_registers else own(block_k),
            plgpu.Barrier(num_barriers=warpgroups),
        ],
        interpret=static.interpret,
    )
    return kernel(q, k, v, visible.first, visible.end, *work, *(bias or ()))
