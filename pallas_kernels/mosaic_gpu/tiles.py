"""What the Mosaic GPU kernels share: the launch, the rings of shared-memory tiles, and the masked SiLU of a tile.

Every kernel has one or two compute warpgroups, each with 64 rows of the tile, and one warpgroup that only copies. A
ring is a queue of tiles in shared memory: the copying warpgroup fills a slot when all readers have released it, and
readers wait until it is filled.

Letters: R rows, L tokens in a row, Q blocks of queries, W tiles of 64 queries.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Int

from pallas_kernels.visible_keys import VisibleKeys, key_block_ranges, longest_first

INTERPRETER = {}  # parameters of the interpreter, for tests
COPY_ALIGNMENT = 128  # bytes: bulk copies read and write shared memory at multiples of it
TILE_ROWS = 64  # rows of the tile that one warpgroup multiplies: M of the wgmma instruction


class MosaicBlocks(NamedTuple):
    """Sizes of the forward kernel, all compile-time constants; the backward kernels follow its last two.

    Attributes:
      query_block: queries of a program, 64 or 128: one warpgroup per 64.
      key_block: keys of a step, 64 or 128.
      num_stages: slots of the rings of keys and values.
      weights_in_registers: the weights go to the second matrix product from registers. False sends them through
        shared memory, which is slower but all that the interpreters support.
    """

    query_block: int
    key_block: int
    num_stages: int
    weights_in_registers: bool


class Options(NamedTuple):
    """Compile-time constants of the kernels."""

    scale: float
    max_length: int
    targets: bool  # some queries see themselves apart from the other keys
    ahead: bool  # some queries see later keys
    blocks: MosaicBlocks
    interpret: bool


@functools.cache
def mosaic() -> Any:
    """Returns jax.experimental.pallas.mosaic_gpu; raises NotImplementedError where it is missing or too old.

    All that depends on the version of jax is here and in `launch`.
    """
    if jax.__version_info__ < (0, 11):
        raise NotImplementedError(
            f"the Mosaic GPU kernels need jax >= 0.11, this is jax {jax.__version__}"
        )
    try:
        from jax.experimental.pallas import mosaic_gpu
    except ImportError as error:  # such as a missing absl-py
        raise NotImplementedError(f"Mosaic GPU of this jax cannot be imported: {error}") from error
    return mosaic_gpu


def lowered_once(run: Callable, static: Sequence[str] = ("options",)) -> Callable:
    """Returns run(.., options), lowered once in a program for all blocks of a model: it takes seconds of Python."""
    jitted = jax.jit(run, static_argnames=static)

    @functools.wraps(run)
    def once(*args):
        return (run if args[-1].interpret else jitted)(
            *args
        )  # interpreters have settings that jit does not see

    return once


def launch(
    body: Callable,
    name: str,
    programs: int,
    warpgroups: int,
    out_type,
    scratch_types,
    interpret: bool,
):
    """Returns the kernel as a function of arrays: `programs` blocks of `warpgroups` compute warpgroups and one more.

    The axes of the body are "program" and "warpgroup"; the last warpgroup is the one that copies.
    """
    plgpu = mosaic()
    body.__name__ = name
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch_types,
        grid=(programs,),
        grid_names=("program",),
        num_threads=warpgroups + 1,
        thread_name="warpgroup",
        # tanh in one instruction. No scratch for sums over the warps of a warpgroup: all warpgroups would share it.
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
        interpret=plgpu.InterpretGPUParams(**INTERPRETER) if interpret else None,
    )


def split_warpgroups(warpgroups: int, compute: Callable, copy: Callable) -> None:
    """Runs compute(warpgroup) in the compute warpgroups and copy() in the last one, which gives them its registers."""
    plgpu = mosaic()
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup < warpgroups)
    def _():
        if (
            warpgroups == 2
        ):  # three warpgroups start with 168 registers per thread, two with all that can be named
            plgpu.set_max_registers(240, action="increase")
        compute(warpgroup)

    @pl.when(warpgroup == warpgroups)
    def _():
        if warpgroups == 2:
            plgpu.set_max_registers(24, action="decrease")
        copy()


# Rings of tiles in shared memory.


class Ring(NamedTuple):
    """Slots for tiles [slots, ..], and per slot the barriers of its filling and of its release by all readers."""

    tiles: Any
    filled: Any
    released: Any


def matrix_tiles(shape: tuple[int, ...], dtype):
    """Returns the scratch type of shared-memory matrices that wgmma can read; the last axis is a multiple of 64."""
    plgpu = mosaic()
    return plgpu.SMEM(
        shape, dtype, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    )


def ring(tiles, readers: int) -> Ring:
    """Returns the scratch types of a ring; tiles: the type of its slots, [slots, ..]. readers: warpgroups."""
    plgpu = mosaic()
    slots, *shape = tiles.shape
    # Else the second slot is at an address that the copy engine takes for an error. No interpreter notices.
    if math.prod(shape) * tiles.dtype.itemsize % COPY_ALIGNMENT:
        raise ValueError(
            f"slots of {shape} {tiles.dtype}: their bytes must be a multiple of {COPY_ALIGNMENT}"
        )
    return Ring(
        tiles,
        plgpu.Barrier(num_barriers=slots),
        plgpu.Barrier(num_arrivals=readers, num_barriers=slots),
    )


def fill(
    steps,
    sources: Sequence[tuple[Ring, Callable]],
    later: Sequence[tuple[Ring, Callable]] = (),
    start=0,
) -> None:
    """Copies source(n) into each ring for start <= n < steps, as slots come free; for the copying warpgroup.

    later: rings whose tile n is read one step after the others, and is copied so; only with start = 0.
    """
    plgpu = mosaic()

    def copy(n, sources):
        for (tiles, filled, released), source in sources:
            slots = tiles.shape[0]
            slot = lax.rem(n, slots)

            @pl.when(n >= slots)
            def _():
                plgpu.barrier_wait(released.at[slot])  # noqa: B023

            plgpu.copy_gmem_to_smem(source(n), tiles.at[slot], filled.at[slot])

    @pl.loop(start, steps)
    def _(n):
        copy(n, sources)
        if later:
            pl.when(n > 0)(lambda: copy(n - 1, later))

    if later:
        pl.when(steps > 0)(lambda: copy(steps - 1, later))


def wait_for(ring: Ring, n):
    """Returns tile n of the ring once it is there."""
    slot = lax.rem(n, ring.tiles.shape[0])
    mosaic().barrier_wait(ring.filled.at[slot])
    return ring.tiles.at[slot]


def peek(ring: Ring, n):
    """Returns tile n of the ring, which this warpgroup has waited for."""
    return ring.tiles.at[lax.rem(n, ring.tiles.shape[0])]


def release(*rings: Ring, tile) -> None:
    """Says that this warpgroup needs a tile no more that matrix products have read."""
    for _, filled, released in rings:
        mosaic().barrier_arrive(released.at[lax.rem(tile, filled.shape[0])])


def release_loaded(*rings: Ring, tile) -> None:
    """Says that this warpgroup needs a tile no more that it has loaded into registers.

    The fence orders these reads before the bulk copies that overwrite the tile.
    """
    mosaic().commit_smem()
    release(*rings, tile=tile)


def load_once(sources: Sequence[tuple[Any, Any]], barrier) -> None:
    """Copies each (global, shared) pair and waits for all of them: so many arrivals complete the barrier."""
    plgpu = mosaic()
    for source, target in sources:
        plgpu.copy_gmem_to_smem(source, target, barrier)
    plgpu.barrier_wait(barrier)


def store(values: Sequence[tuple[Any, Any, Any]]) -> None:
    """Writes each (value, shared, global): the value goes through the shared-memory tile."""
    plgpu = mosaic()
    for value, tile, _ in values:
        tile[...] = value.astype(tile.dtype)
    plgpu.commit_smem()
    for _, tile, target in values:
        plgpu.copy_smem_to_gmem(tile, target)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def product(left, right, shape: tuple[int, int]):
    """Returns the float32 product of `shape`, and waits for all products before it too."""
    plgpu = mosaic()

    def multiply(accumulator):
        plgpu.wgmma(accumulator, left, right)
        return accumulator[...]

    return pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))


def keep(value, tile):
    """Returns a 16-bit value that a matrix product needs later; nothing, and the value in `tile`, if there is one."""
    if tile is None:
        return value
    tile[...] = value
    mosaic().commit_smem()
    return ()


def kept(value, tile):
    """Returns what `keep` kept, as the left operand of a matrix product."""
    return value if tile is None else tile


# Which tiles a program visits, and the mask of a tile.


class Schedule(NamedTuple):
    """The work of a kernel whose program owns a block of queries.

    Attributes:
      ranges: key blocks of each query block, as `key_block_ranges` returns them.
      order: the programs r * Q + block, longest first.
      unmasked: per tile of 64 queries the key blocks a <= n < b of which every query sees every key.
    """

    ranges: Int[Array, "R Q 4"]
    order: Int[Array, " RQ"]
    unmasked: Int[Array, "R W 2"]


def schedule(visible: VisibleKeys, query_block: int, key_block: int) -> Schedule:
    """Returns the schedule of blocks of these sizes, which divide L."""
    ranges = key_block_ranges(visible, query_block, key_block)
    a, b, c, d = jnp.moveaxis(ranges, -1, 0)
    in_tiles = lambda x: x.reshape(x.shape[0], -1, TILE_ROWS)
    first, end = in_tiles(visible.first).max(2), in_tiles(visible.end).min(2)
    unmasked = jnp.stack([-(-first // key_block), end // key_block], -1)
    return Schedule(ranges, longest_first(b - a + d - c), unmasked.astype(jnp.int32))


def masked(values, first, end, query, key, query_axis: int):
    """Returns the tiles with 0 where the query does not see the key.

    values: float32 tiles of queries by keys, or of keys by queries if query_axis is 1.
    first, end: the bounds of the queries of the tile, along that axis. key: row index of the first key.
    query: row index of the first query; None where no query sees itself apart from its interval.
    """
    plgpu = mosaic()
    shape = values[0].shape
    index = lambda axis: plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)
    first, end = (lax.broadcast_in_dim(x, shape, [query_axis]) for x in (first, end))
    # A thread holds the columns 8 n + its own few: n is known to the compiler, and what is compared with it does not
    # depend on n. Otherwise the compiler keeps all its column numbers in registers.
    j = index(1 - query_axis)
    of_thread = j & 7
    seen = (j - of_thread >= first - key - of_thread) & (j - of_thread < end - key - of_thread)
    if query is not None:
        # Padding too, whose vectors are 0. Not where end > 0: a target without any history has end = 0 as well.
        seen |= j - of_thread == index(query_axis) + (query - key) - of_thread
    return [jnp.where(seen, x, 0.0) for x in values]


def half_scores(products, scale: float, bias_tile):
    """Returns half the scores, float32: scale / 2 q.k, plus the tile of half the bias if there is one."""
    half = products * (0.5 * scale)
    if bias_tile is not None:
        half += mosaic().load(bias_tile, layout=mosaic().Layout.WGMMA).astype(jnp.float32)
    return half


def silu(half):
    """Returns SiLU(2 half) = half (1 + tanh(half)): one special-function instruction per entry."""
    return half * jnp.tanh(half) + half


def silu_and_slope(half):
    """Returns s = SiLU(2 half) and twice its derivative, 1 + t + s (1 - t) with t = tanh(half)."""
    t = jnp.tanh(half)
    value = half * t + half
    return value, (t + 1.0) + (value - t * value)
