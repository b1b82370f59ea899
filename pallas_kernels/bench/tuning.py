"""The fastest block sizes of a GPU kernel for a shape, by running the candidates."""

from __future__ import annotations

import itertools
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp

from pallas_kernels import block_sizes, dispatch
from pallas_kernels.bench import measure
from pallas_kernels.bench.timing import Program, interleaved
from pallas_kernels.block_sizes import Blocks
from pallas_kernels.mosaic_gpu.tiles import MosaicBlocks
from pallas_kernels.specs import SPECS, Spec

SHARED_MEMORY = 220_000  # bytes that the tiles in flight may take


def candidates(implementation: str, spec: Spec) -> list[Blocks] | list[MosaicBlocks]:
    """The blocks worth trying.

    Their tiles fit into shared memory and keep the accumulators in registers.
    """
    widest = max(16, 1 << (max(spec.qk_width, spec.v_width) - 1).bit_length())
    size = jnp.dtype(spec.dtype).itemsize
    fits = lambda keys, stages: 2 * keys * widest * size * stages <= SHARED_MEMORY
    if implementation == "pallas_mosaic_gpu":
        grid = itertools.product((64, 128), (64, 128), (2, 3, 4))
        return [MosaicBlocks(q, k, stages, True) for q, k, stages in grid if fits(k, stages)]
    grid = itertools.product((64, 128), (32, 64, 128), (4, 8), (1, 2))
    return [
        Blocks(q, k, warps, stages)
        for q, k, warps, stages in grid
        # A thread holds its part of the scores and of the output tile in at most 128 of its 255
        # registers.
        if fits(k, stages) and q * (k + widest) <= 128 * 32 * warps
    ]


def time_candidates(
    implementation: str, spec: Spec
) -> tuple[dict[Blocks | MosaicBlocks, float], dict[Blocks | MosaicBlocks, str]]:
    """Milliseconds of forward plus backward per candidate, and why the others failed."""
    sets = [jax.tree.map(jnp.asarray, arrays) for arrays in measure.input_sets(spec)]
    programs: dict[str, Program] = {}
    blocks = {repr(b): b for b in candidates(implementation, spec)}
    failed: dict[Blocks | MosaicBlocks, str] = {}

    def prepare(name: str) -> None:
        try:
            backend = dispatch.load(implementation)
            both = measure.functions(backend, spec, blocks[name])["forward_backward"]
            program, _ = measure.compiled_program(both, sets)
            program.wait(program.launch(0))
            programs[name] = program
        except Exception as error:  # too much shared memory, say
            failed[blocks[name]] = measure.one_line(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(prepare, blocks))
    timed = interleaved(programs)
    return {blocks[name]: numbers["ms"] for name, numbers in timed.items()}, failed


def run(shapes: list[str], names: list[str], *, table: Path, seconds: float) -> int:
    """Tune every (implementation, shape) that can run here; the exit code.

    Writes the table after each.
    """
    start = time.monotonic()
    tunable = [name for name in names if name in ("pallas_triton", "pallas_mosaic_gpu")]
    written = 0
    for shape, name in itertools.product(shapes, tunable):
        spec = SPECS[shape]
        reason = measure.why_not(name, spec, "")
        if seconds and time.monotonic() - start > seconds:
            reason = f"the budget of {seconds:.0f} s is spent"
        if reason:
            print(f"{shape:24} {name:18} skipped: {reason}", flush=True)
            continue
        times, failed = time_candidates(name, spec)
        for blocks, why in failed.items():
            print(f"{shape:24} {name:18} {blocks}: {why}", file=sys.stderr)
        if not times:
            print(f"{shape:24} {name:18} no candidate ran", flush=True)
            continue
        best = min(times, key=lambda blocks: times[blocks])
        arrays = measure.input_sets(spec, 1)[0]
        key = block_sizes.key_of(name, arrays["q"], arrays["v"])
        how = f"jax {jax.__version__}, {shape}, {len(times)} candidates"
        block_sizes.record(key, best._asdict(), times[best], how, table)
        written += 1
        found = f"{best} {times[best]:.3f} ms, slowest {max(times.values()):.3f} ms"
        print(f"{shape:24} {name:18} {found}", flush=True)
    if not written:
        print("nothing was tuned, the table is unchanged", file=sys.stderr)
    return 0 if written else 1
