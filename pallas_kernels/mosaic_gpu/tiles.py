"""Shared parts of the Mosaic GPU kernels: launch, rings of tiles, matrix products.

Every kernel has one or two compute warpgroups, each with 64 rows of the tile, and one warpgroup
that only copies. A ring is a queue of tiles in shared memory: the copying warpgroup fills a slot
when all readers have released it, and readers wait until it is filled.
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

from pallas_kernels.arguments import ArrayOrRef

INTERPRETER = {}  # parameters of the interpreter, for tests
COPY_ALIGNMENT = 128  # bytes: bulk copies read and write shared memory at multiples of it
TILE_ROWS = 64  # rows of the tile that one warpgroup multiplies: M of the wgmma instruction


class MosaicBlocks(NamedTuple):
    """Compile-time sizes of the forward kernel; the backward kernels follow its last two.

    Attributes:
      query_block: queries of a program, 64 or 128: one warpgroup per 64.
      key_block: keys of a step, 64 or 128.
      num_stages: slots of the rings of keys and values.
      weights_in_registers: the weights go to the second matrix product from registers. False sends
        them through shared memory, which is slower but all that the interpreters support.
    """

    query_block: int
    key_block: int
    num_stages: int
    weights_in_registers: bool


class Static(NamedTuple):
    """Compile-time constants of the kernels."""

    scale: float
    max_length: int
    targets: bool  # some queries see themselves apart from the other keys
    blocks: MosaicBlocks
    interpret: bool


class Vectors(NamedTuple):
    """The arrays of a backward pass; d_out: gradient of the output, [R, L, H, V] as v."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    d_out: jax.Array


@functools.cache
def mosaic() -> Any:
    """The module jax.experimental.pallas.mosaic_gpu.

    Raises NotImplementedError where it is missing or too old. All that depends on the version of
    jax is here and in `launch`.
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


def lowered_once(run: Callable, static: Sequence[str] = ("static",)) -> Callable:
    """run(.., static), lowered once for all blocks of a model: it takes seconds of Python."""
    jitted = jax.jit(run, static_argnames=static)

    @functools.wraps(run)
    def once(*args):
        # Interpreters have settings that jit does not see.
        return (run if args[-1].interpret else jitted)(*args)

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
    """The kernel as a function of arrays: `programs` blocks of `warpgroups` + 1 warpgroups.

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
        # tanh in one instruction. No scratch for sums over the warps of a warpgroup: all warpgroups
        # would share it.
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
        interpret=plgpu.InterpretGPUParams(**INTERPRETER) if interpret else None,
    )


def split_warpgroups(warpgroups: int, compute: Callable, copy: Callable) -> None:
    """Run compute(warpgroup) in the compute warpgroups and copy() in the last one.

    The last one gives the others its registers.
    """
    plgpu = mosaic()
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup < warpgroups)
    def _():
        # Three warpgroups start with 168 registers per thread, two with all that can be named.
        if warpgroups == 2:
            plgpu.set_max_registers(240, action="increase")
        compute(warpgroup)

    @pl.when(warpgroup == warpgroups)
    def _():
        if warpgroups == 2:
            plgpu.set_max_registers(24, action="decrease")
        copy()


# Rings of tiles in shared memory.


class Ring(NamedTuple):
    """Slots for tiles [slots, ..].

    Per slot there are the barriers of its filling and of its release by all readers.
    """

    tiles: ArrayOrRef
    filled: ArrayOrRef
    released: ArrayOrRef


def matrix_tiles(shape: tuple[int, ...], dtype):
    """Scratch type of shared-memory matrices that wgmma can read.

    The last axis is a multiple of 64.
    """
    plgpu = mosaic()
    transforms = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def ring(tiles, readers: int) -> Ring:
    """Scratch types of a ring.

    tiles: the type of its slots, [slots, ..]. readers: warpgroups.
    """
    plgpu = mosaic()
    slots, *shape = tiles.shape
    # Else the second slot is at an address that the copy engine takes for an error. No interpreter
    # notices.
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
    """Copy source(n) into each ring for start <= n < steps, as slots come free.

    For the copying warpgroup.
    later: rings whose tile n is read one step after the others, and is copied so; only with
        start = 0.
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
    """Tile n of the ring, once it is there."""
    slot = lax.rem(n, ring.tiles.shape[0])
    mosaic().barrier_wait(ring.filled.at[slot])
    return ring.tiles.at[slot]


def peek(ring: Ring, n):
    """Tile n of the ring, which this warpgroup has waited for."""
    return ring.tiles.at[lax.rem(n, ring.tiles.shape[0])]


def release(*rings: Ring, tile) -> None:
    """Release a tile that matrix products of this warpgroup have read."""
    for _, filled, released in rings:
        mosaic().barrier_arrive(released.at[lax.rem(tile, filled.shape[0])])


def release_loaded(*rings: Ring, tile) -> None:
    """Release a tile that this warpgroup has loaded into registers.

    The fence orders these reads before the bulk copies that overwrite the tile.
    """
    mosaic().commit_smem()
    release(*rings, tile=tile)


def load_once(sources: Sequence[tuple[ArrayOrRef, ArrayOrRef]], barrier) -> None:
    """Copy each (global, shared) pair, an arrival at the barrier each, and wait for all of them."""
    plgpu = mosaic()
    for source, target in sources:
        plgpu.copy_gmem_to_smem(source, target, barrier)
    plgpu.barrier_wait(barrier)


def store(values: Sequence[tuple[ArrayOrRef, ArrayOrRef, ArrayOrRef]]) -> None:
    """Write each (value, shared, global): the value goes through the shared-memory tile."""
    plgpu = mosaic()
    for value, tile, _ in values:
        tile[...] = value.astype(tile.dtype)
    plgpu.commit_smem()
    for _, tile, target in values:
        plgpu.copy_smem_to_gmem(tile, target)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def product(left, right, shape: tuple[int, int]):
    """The float32 product of `shape`; waits for all products before it too."""
    plgpu = mosaic()

    def multiply(accumulator):
        plgpu.wgmma(accumulator, left, right)
        return accumulator[...]

    return pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))


def keep(value, tile):
    """Keep a 16-bit value that a matrix product needs later: in `tile`, if there is one."""
    if tile is None:
        return value
    tile[...] = value
    mosaic().commit_smem()
    return ()


def kept(value, tile):
    """The value that `keep` kept, as the left operand of a matrix product."""
    return value if tile is None else tile


def store_results(steps, loads, barrier, compute: Callable, targets: Sequence[tuple]) -> None:
    """Load what a warpgroup owns, compute its results and store them; zeros where steps = 0.

    loads: (global, shared) pairs, an arrival at the barrier each. compute() gives float32 results.
    targets: (shape, shared tile, global) of each result.
    """
    plgpu = mosaic()

    @pl.when(steps > 0)
    def _():
        load_once(loads, barrier)
        results = compute()
        store([(x, tile, at) for x, (_, tile, at) in zip(results, targets, strict=True)])

    @pl.when(steps == 0)
    def _():
        zeros = lambda shape: plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)
        store([(zeros(shape), tile, at) for shape, tile, at in targets])
