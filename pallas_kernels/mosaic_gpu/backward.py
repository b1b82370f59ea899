"""Gradients of q, k and v of the Mosaic GPU attention; nothing of size [L, L] is stored.

The scores are recomputed. With g the derivative of SiLU at the scores S:
    dS = mask * g * (dO v^T)
    dq = scale / N dS k,   dk = scale / N dS^T q,   dv = 1 / N (mask * SiLU(S))^T dO
The kernels hold 2 dS, and halve what they write. A program of the first kernel owns queries, a
program of the second one owns keys, so nothing is added across programs.

Letters: R rows, L tokens in a row, H heads, A query and key width, V value width.
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
    masked,
    query_mask,
    query_program,
    schedule,
    silu_and_slope,
)
from pallas_kernels.mosaic_gpu.tiles import (
    COPY_ALIGNMENT,
    TILE_ROWS,
    Static,
    Vectors,
    fill,
    keep,
    kept,
    launch,
    lowered_once,
    matrix_tiles,
    mosaic,
    peek,
    release,
    release_loaded,
    ring,
    split_warpgroups,
    store_results,
    wait_for,
)
from pallas_kernels.visible_keys import (
    VisibleKeys,
    key_block_ranges,
    longest_first,
    query_block_ranges,
)


@lowered_once
def query_gradient(
    vectors: Vectors, visible: VisibleKeys, bias: BiasTiles | None, static: Static
) -> Float[Array, "R L H A"]:
    """The gradient of q for padded inputs: L a multiple of 128, A and V of 64, no NaN."""
    plgpu = mosaic()
    q, value_width = vectors.q, vectors.v.shape[3]
    rows, length, heads, width = q.shape
    block_q, block_k, stages = query_gradient_blocks(width, value_width)
    # Else they spill.
    in_registers = static.blocks.weights_in_registers and max(width, value_width) <= 64
    warpgroups, blocks = block_q // TILE_ROWS, length // block_q
    work = schedule(visible, block_q, block_k)
    tile_shape = (TILE_ROWS, block_k)

    def body(q_gmem, k_gmem, v_gmem, do_gmem, *refs):
        bounds_gmem, work_gmem, refs = refs[:2], Schedule(*refs[2:5]), refs[5:]
        *bias_gmem, dq_gmem = refs[:-7]
        q_smem, do_smem, k_ring, v_ring, bias_ring, ds_smem, barrier = refs[-7:]
        row, block, head, steps, key_block = query_program(work_gmem, heads, blocks)

        def copy():
            keys = lambda n: pl.ds(key_block(n) * block_k, block_k)
            sources = [
                (k_ring, lambda n: k_gmem.at[row, keys(n), head]),
                (v_ring, lambda n: v_gmem.at[row, keys(n), head]),
            ]
            if bias is not None:
                part = lambda n: bias_part(
                    bias_gmem, row, block * block_q, key_block(n) * block_k, block_q, block_k
                )
                sources.append((bias_ring, part))
            fill(steps, sources)

        def compute(warpgroup):
            tile = block * warpgroups + warpgroup
            queries = pl.ds(tile * TILE_ROWS, TILE_ROWS)
            q_tile, do_tile = q_smem.at[warpgroup], do_smem.at[warpgroup]
            ds_tile = None if in_registers else ds_smem.at[warpgroup]
            mask = query_mask(bounds_gmem, work_gmem, row, tile, block_k, static)

            def score_gradient(products, n):
                scores, d_weights = products
                bias_tile = None
                if bias is not None:
                    bias_tile = wait_for(bias_ring, n).at[half_of(warpgroup)]
                _, slope = silu_and_slope(half_scores(scores, static.scale, bias_tile))
                if bias is not None:
                    release_loaded(bias_ring, tile=n)
                block_n = key_block(n)
                return mask(slope * d_weights, block_n)

            def attend():
                accumulators = [plgpu.ACC(tile_shape, jnp.float32)] * 2
                keys, values = wait_for(k_ring, 0), wait_for(v_ring, 0)

                def first_products(scores, d_weights):
                    plgpu.wgmma(scores, q_tile, keys.transpose((1, 0)))
                    plgpu.wgmma(d_weights, do_tile, values.transpose((1, 0)))
                    return scores[...], d_weights[...]

                products = pl.run_scoped(first_products, *accumulators)
                release(v_ring, tile=0)
                held = keep(score_gradient(products, 0).astype(q.dtype), ds_tile)

                def accumulate(d_query):
                    def step(n, held):
                        left = kept(held, ds_tile)
                        before = peek(k_ring, n - 1)
                        keys, values = wait_for(k_ring, n), wait_for(v_ring, n)

                        def multiply(scores, d_weights):
                            plgpu.wgmma(scores, q_tile, keys.transpose((1, 0)))
                            plgpu.wgmma(d_weights, do_tile, values.transpose((1, 0)))
                            plgpu.wgmma(d_query, left, before)
                            load = plgpu.wgmma_accumulator_load
                            # d_query may be under way still.
                            return load(scores, wait_n=1), load(d_weights, wait_n=None)

                        products = pl.run_scoped(multiply, *accumulators)
                        release(v_ring, tile=n)
                        d_scores = score_gradient(products, n)
                        plgpu.wgmma_wait(0)
                        release(k_ring, tile=n - 1)
                        return keep(d_scores.astype(q.dtype), ds_tile)

                    last = lax.fori_loop(1, steps, step, held)
                    plgpu.wgmma(d_query, kept(last, ds_tile), peek(k_ring, steps - 1))
                    return d_query[...]

                return pl.run_scoped(accumulate, plgpu.ACC((TILE_ROWS, width), jnp.float32))

            own = lambda gmem: gmem.at[row, queries, head]
            store_results(
                steps,
                [(own(q_gmem), q_tile), (own(do_gmem), do_tile)],
                barrier.at[warpgroup],
                lambda: [attend() * (0.5 * static.scale / static.max_length)],
                [((TILE_ROWS, width), q_tile, own(dq_gmem))],
            )

        split_warpgroups(warpgroups, compute, copy)

    own = lambda n: matrix_tiles((warpgroups, TILE_ROWS, n), q.dtype)
    queue = lambda *shape: ring(matrix_tiles(shape, q.dtype), warpgroups)
    kernel = launch(
        body,
        "hstu_query_gradient",
        rows * blocks * heads,
        warpgroups,
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_types=[
            own(width),
            own(value_width),
            queue(4 if width <= 128 else 3, block_k, width),  # read a step longer
            queue(stages, block_k, value_width),
            None if bias is None else queue(stages, block_q, block_k),
            None if in_registers else own(block_k),
            plgpu.Barrier(num_arrivals=2, num_barriers=warpgroups),
        ],
        interpret=static.interpret,
    )
    return kernel(*vectors, visible.first, visible.end, *work, *(bias or ()))


def query_gradient_blocks(width: int, value_width: int) -> tuple[int, int, int]:
    """Query block, key block and stages that fit shared memory and registers."""
    return (128, 64, 2) if max(width, value_width) <= 128 else (64, 64, 1)


@lowered_once
def key_gradients(
    vectors: Vectors, visible: VisibleKeys, bias: BiasTiles | None, static: Static
) -> tuple[Float[Array, "R L H A"], Float[Array, "R L H V"]]:
    """The gradients of k and v for padded inputs: L a multiple of 128, A and V of 64, no NaN."""
    args = vectors, visible, bias, static
    if vectors.k.shape[3] + vectors.v.shape[3] <= 256:
        d_k, d_v = _key_gradients(*args, parts=("k", "v"))
        return d_k, d_v
    # Both accumulators would not fit in the registers: each in a kernel of its own.
    return _key_gradients(*args, parts=("k",))[0], _key_gradients(*args, parts=("v",))[0]


def _key_gradients(
    vectors: Vectors, visible: VisibleKeys, bias: BiasTiles | None, static: Static, parts
):
    plgpu = mosaic()
    q, value_width = vectors.q, vectors.v.shape[3]
    rows, length, heads, width = q.shape
    block_k, block_q, stages = key_gradient_blocks(width, value_width)
    in_registers = static.blocks.weights_in_registers
    warpgroups, blocks = block_k // TILE_ROWS, length // block_k
    ranges = query_block_ranges(key_block_ranges(visible, block_q, block_k), blocks)
    order = longest_first(ranges[..., 1] - ranges[..., 0])
    bounds, extremes = query_bounds(visible, block_q)
    tile_shape = (TILE_ROWS, block_q)
    widths = {"k": width, "v": value_width}

    def body(q_gmem, k_gmem, v_gmem, do_gmem, *refs):
        bounds_gmem, extremes_gmem, ranges_gmem, order_gmem = refs[:4]
        bias_gmem, out_gmem = refs[4 : -9 - len(parts)], refs[-9 - len(parts) : -9]
        k_smem, v_smem, q_ring, do_ring, bounds_ring, extremes_ring = refs[-9:-3]
        bias_ring, kept_smem, barrier = refs[-3:]
        program = lax.axis_index("program")
        head, item = lax.rem(program, heads), order_gmem[lax.div(program, heads)]
        row, block = lax.div(item, blocks), lax.rem(item, blocks)
        start = ranges_gmem[row, block, 0]
        steps = ranges_gmem[row, block, 1] - start

        def copy():
            queries = lambda n: pl.ds((start + n) * block_q, block_q)
            sources = [
                (q_ring, lambda n: q_gmem.at[row, queries(n), head]),
                (do_ring, lambda n: do_gmem.at[row, queries(n), head]),
                (bounds_ring, lambda n: bounds_gmem.at[row, start + n]),
                (extremes_ring, lambda n: extremes_gmem.at[row, start + n]),
            ]
            if bias is not None:
                part = lambda n: bias_part(
                    bias_gmem, row, (start + n) * block_q, block * block_k, block_q, block_k
                )
                sources.append((bias_ring, part))
            fill(steps, sources)

        def compute(warpgroup):
            first_key = (block * warpgroups + warpgroup) * TILE_ROWS
            keys = pl.ds(first_key, TILE_ROWS)
            k_tile, v_tile = k_smem.at[warpgroup], v_smem.at[warpgroup]
            kept_tile = lambda n: None if in_registers else kept_smem.at[n, warpgroup]
            tiles = {part: kept_tile(n) for n, part in enumerate(parts)}

            def tile_gradients(products, n):
                """The gradient of the scores and the weights, transposed, those that are needed."""
                scores, d_weights = products
                bias_tile = None
                if bias is not None:
                    of_keys = half_of(warpgroup)
                    bias_tile = wait_for(bias_ring, n).at[:, of_keys].transpose((1, 0))
                weights, slope = silu_and_slope(half_scores(scores, static.scale, bias_tile))
                values = [slope * d_weights if part == "k" else weights for part in parts]
                extremes, bounds = wait_for(extremes_ring, n), wait_for(bounds_ring, n)
                seen = (extremes[0] <= first_key) & (first_key + TILE_ROWS <= extremes[1])

                def mask(values):
                    along_queries = plgpu.Layout.WGMMA.reduce(0)
                    first, end = (plgpu.load(bounds.at[m], layout=along_queries) for m in (0, 1))
                    query = (start + n) * block_q if static.targets else None
                    return masked(values, first, end, query, first_key, 1)

                rounded = lambda values: [x.astype(q.dtype) for x in values]
                values = lax.cond(seen, rounded, lambda x: rounded(mask(x)), values)
                loaded = [extremes_ring, bounds_ring, *([bias_ring] if bias is not None else [])]
                release_loaded(*loaded, tile=n)
                return values

            def accumulate(*gradients):
                def step(n, _):
                    queries, d_outs = wait_for(q_ring, n), wait_for(do_ring, n)

                    def multiply(scores, d_weights):
                        plgpu.wgmma(scores, k_tile, queries.transpose((1, 0)))
                        if "k" in parts:
                            plgpu.wgmma(d_weights, v_tile, d_outs.transpose((1, 0)))
                        return scores[...], d_weights[...]

                    products = pl.run_scoped(multiply, *[plgpu.ACC(tile_shape, jnp.float32)] * 2)
                    values = tile_gradients(products, n)
                    held = [keep(x, tiles[part]) for part, x in zip(parts, values, strict=True)]
                    for gradient, part, x in zip(gradients, parts, held, strict=True):
                        right = queries if part == "k" else d_outs
                        plgpu.wgmma(gradient, kept(x, tiles[part]), right)
                    plgpu.wgmma_wait(0)
                    release(q_ring, do_ring, tile=n)

                lax.fori_loop(0, steps, step, None)
                return [gradient[...] for gradient in gradients]

            factors = {"k": 0.5 * static.scale / static.max_length, "v": 1 / static.max_length}
            accumulators = [plgpu.ACC((TILE_ROWS, widths[part]), jnp.float32) for part in parts]

            def gradients():
                found = pl.run_scoped(accumulate, *accumulators)
                return [x * factors[part] for part, x in zip(parts, found, strict=True)]

            owned = {"k": k_tile, "v": v_tile}
            at = lambda gmem: gmem.at[row, keys, head]
            store_results(
                steps,
                [(at(k_gmem), k_tile), (at(v_gmem), v_tile)],
                barrier.at[warpgroup],
                gradients,
                [
                    ((TILE_ROWS, widths[part]), owned[part], at(out))
                    for part, out in zip(parts, out_gmem, strict=True)
                ],
            )

        split_warpgroups(warpgroups, compute, copy)

    tiles_of = lambda *shape: matrix_tiles(shape, q.dtype)
    queue = lambda *shape: ring(tiles_of(stages, *shape), warpgroups)
    ints = lambda *shape: ring(plgpu.SMEM((stages, *shape), jnp.int32), warpgroups)
    shape = lambda part: (rows, length, heads, widths[part])
    kernel = launch(
        body,
        f"hstu_gradient_of_{'_and_'.join(parts)}",
        rows * blocks * heads,
        warpgroups,
        out_type=[jax.ShapeDtypeStruct(shape(part), q.dtype) for part in parts],
        scratch_types=[
            tiles_of(warpgroups, TILE_ROWS, width),
            tiles_of(warpgroups, TILE_ROWS, value_width),
            queue(block_q, width),
            queue(block_q, value_width),
            ints(2, block_q),
            ints(COPY_ALIGNMENT // 4),
            None if bias is None else queue(block_q, block_k),
            None if in_registers else tiles_of(len(parts), warpgroups, TILE_ROWS, block_q),
            plgpu.Barrier(num_arrivals=2, num_barriers=warpgroups),
        ],
        interpret=static.interpret,
    )
    return kernel(*vectors, bounds, extremes, ranges, order, *(bias or ()))


def key_gradient_blocks(width: int, value_width: int) -> tuple[int, int, int]:
    """Key block, query block and stages that fit shared memory.

    Two warpgroups have 240 registers a thread: with two accumulators 128 wide, 20 too few. One
    warpgroup has 255.
    """
    return (128, 64, 2) if max(width, value_width) <= 64 else (64, 64, 2)


def query_bounds(visible: VisibleKeys, block: int):
    """First and end of the queries of each block [R, Q, 2, block], and their extremes [R, Q, 32].

    The extremes are the last first and the first end, again and again: a bulk copy writes at
    multiples of 128 bytes.
    """
    first, end = (x.reshape(x.shape[0], -1, block) for x in (visible.first, visible.end))
    extremes = [first.max(2), end.min(2)]
    return jnp.stack([first, end], 2), jnp.stack(extremes * (COPY_ALIGNMENT // 8), -1)
