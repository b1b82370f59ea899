"""Speed, memory and error of HSTU attention on a shape, next to the attention of other libraries.

Milliseconds are medians of interleaved rounds; `backward` is forward+backward less forward. TFLOP/s
count the matmuls of the causal half (`specs.flops`), whatever a program computes. An implementation
that cannot run here is listed with its reason.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import dispatch, specs
from pallas_kernels.arguments import Options, backend_arguments
from pallas_kernels.bench import rivals
from pallas_kernels.bench.timing import Program, interleaved
from pallas_kernels.reference import reference_attention
from pallas_kernels.specs import SPECS, Spec

Record = dict[
    str, Any
]  # of one implementation at a shape: times, rates and errors, as JSON has them
INPUT_SETS = 3  # inputs that the calls of a burst take one after the other
WRONG = 0.05  # of the largest entry: bfloat16 is off by less than 0.01
SLICE = 512  # tokens of a row that are checked against the reference
# Their set-up captures or times what the device does: nothing else may run then.
ALONE = ("cudnn", "peer")
DEVICE_LOST = (
    "CUDA_ERROR",
    "ILLEGAL_ADDRESS",
    "illegal memory access",
    "misaligned address",
    "launch failure",
)
CRASHED = "the process ended during this case"


def functions(backend: Callable, spec: Spec, blocks: tuple | None = None) -> dict[str, Callable]:
    """`forward(arrays)` and `forward_backward(arrays)` of a backend.

    arrays: the inputs and `d_out` by name. blocks: block sizes; None = the shipped ones.
    """
    options = Options(**specs.options(spec), blocks=blocks)
    differentiable = ("q", "k", "v", "position_table", "time_table")

    def forward(arrays: dict) -> jax.Array:
        return backend(*backend_arguments(arrays), options)

    def forward_backward(arrays: dict) -> tuple[jax.Array, dict]:
        floats = {name: x for name, x in arrays.items() if name in differentiable}
        rest = {name: x for name, x in arrays.items() if name not in differentiable}
        out, backward = jax.vjp(lambda floats: forward(floats | rest), floats)
        return out, backward(arrays["d_out"])[0]

    return {"forward": forward, "forward_backward": forward_backward}


def softmax_functions(rival: str, spec: Spec) -> dict[str, Callable]:
    """The functions of a softmax rival, which takes q, k and v only."""
    attend = rivals.softmax_attention(rival, spec)
    return functions(lambda q, k, v, *_: attend(q, k, v), spec)


def input_sets(spec: Spec, number: int = INPUT_SETS) -> list[dict[str, np.ndarray]]:
    """Inputs with the gradient of the output, `d_out`.

    The sets differ in all vectors, not in the lengths.
    """
    arrays = specs.inputs(spec)
    arrays["d_out"] = np.roll(arrays["v"], 1, axis=1)
    vectors = ("q", "k", "v", "d_out")
    turned = lambda n: {name: np.roll(arrays[name], n, axis=-1) for name in vectors}
    return [arrays | turned(n) for n in range(number)]


def compiled_program(function: Callable, sets: list[dict]) -> tuple[Program, jax.stages.Compiled]:
    """The compiled function as a program over the input sets, and the executable."""
    executable = jax.jit(function).lower(sets[0]).compile()
    return Program(lambda i: executable(sets[i % len(sets)]), jax.block_until_ready), executable


def memory(executable: jax.stages.Compiled) -> dict[str, int]:
    """Temporary, argument and output bytes of a program.

    Also the device's peak so far, where it counts it.
    """
    analysis = executable.memory_analysis()
    found = {
        f"{part}_bytes": int(getattr(analysis, f"{part}_size_in_bytes"))
        for part in ("temp", "argument", "output")
    }
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        found["process_peak_bytes"] = stats["peak_bytes_in_use"]
    return found


def errors(result: tuple[jax.Array, dict], arrays: dict, spec: Spec) -> dict[str, float]:
    """Largest errors of output, d_q, d_k and d_v, over the largest entry of the reference.

    The reference is in float32, on a slice of the first row: outputs and d_q of its first tokens
    depend on nothing after them,
    d_k and d_v of its last tokens on nothing before them.
    """
    size = min(SLICE, spec.length)
    first, last = slice(0, size), slice(spec.length - size, spec.length)
    found = {}
    for part, names in ((first, ("out", "q")), (last, ("k", "v"))):
        cut = {name: x if x.ndim == 1 else jnp.asarray(x[:1, part]) for name, x in arrays.items()}
        cut |= {name: cut[name].astype(jnp.float32) for name in ("q", "k", "v", "d_out")}
        out, gradients = jax.jit(functions(reference_attention, spec)["forward_backward"])(cut)
        expected = gradients | {"out": out}
        for name in names:
            ours = (result[0] if name == "out" else result[1][name])[:1, part].astype(jnp.float32)
            largest = float(jnp.abs(expected[name]).max())
            error = float(jnp.abs(ours - expected[name]).max()) / largest
            found[name if name == "out" else "d_" + name] = error
    return found


def speed(timed: dict[str, dict[str, float]], spec: Spec) -> Record:
    """Times and TFLOP/s of forward and, where there are gradients, of the other two parts.

    These are forward+backward and the difference.
    """
    parts = dict(timed)
    if "forward_backward" in timed:
        both, forward = timed["forward_backward"], timed["forward"]
        parts["backward"] = {name: both[name] - forward[name] for name in ("ms", "min_ms")}
    work = {"forward": specs.flops(spec), "backward": specs.flops(spec, backward=True)}
    work["forward_backward"] = work["forward"] + work["backward"]
    rate = lambda name: work[name] / parts[name]["ms"] / 1e9 if parts[name]["ms"] > 0 else None
    return {name: {**part, "tflops": rate(name)} for name, part in parts.items()}


def why_not(name: str, spec: Spec, peer: str) -> str | None:
    """The reason why an implementation or rival cannot run this shape on this device, or None."""
    device = dispatch.current_device()
    if name in rivals.RIVALS:
        return rivals.why_not(name, device, spec, peer)
    return dispatch.why_not(name, device, spec.dtype, max(spec.qk_width, spec.v_width))


def one_line(error: BaseException, max_chars: int = 300) -> str:
    """An error as one line of at most `max_chars` characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:max_chars]


def bench_shape(spec: Spec, names: list[str], peer: str) -> dict[str, Record]:
    """A record per implementation: times, memory and errors, or `skipped` or `error` and why."""
    records: dict[str, Record] = {name: {} for name in names}
    for name in names:
        if reason := why_not(name, spec, peer):
            records[name]["skipped"] = reason
    running = [name for name in names if not records[name]]
    if not running:
        return records

    host = input_sets(spec)
    sets = [jax.tree.map(jnp.asarray, arrays) for arrays in host]
    programs: dict[str, Program] = {}

    def prepare(name: str) -> None:
        try:
            if name == "peer":
                ready = rivals.peer_programs(peer, spec, host, specs.options(spec)["scale"])
            else:
                ready = prepare_in_jax(name)
            programs.update({f"{name} {part}": program for part, program in ready.items()})
        except Exception as error:  # one that fails is a result too, and must not lose the others
            records[name] = {"error": one_line(error)}

    def prepare_in_jax(name: str) -> dict[str, Program]:
        ours = name not in rivals.RIVALS
        both = functions(dispatch.load(name), spec) if ours else softmax_functions(name, spec)
        ready, results = {}, {}
        records[name]["memory"] = {}
        for part, function in both.items():
            try:
                ready[part], executable = compiled_program(function, sets)
            except NotImplementedError as error:
                records[name]["no_" + part] = one_line(error)
                continue
            records[name]["memory"][part] = memory(executable)
            results[part] = jax.block_until_ready(ready[part].launch(0))
        if ours and "forward_backward" in results:
            found = errors(results["forward_backward"], sets[0], spec)
            records[name]["error_of_largest"] = found
            if wrong := [f"{what} is off by {e:.1e}" for what, e in found.items() if not e < WRONG]:
                raise ArithmeticError(f"wrong results, not timed: {', '.join(wrong)}")
        return ready

    # Compilers use one core each.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(prepare, [name for name in running if name not in ALONE]))
    for name in running:
        if name in ALONE:
            prepare(name)

    timed = interleaved(programs)
    for name in running:
        parts = [part for part in ("forward", "forward_backward") if f"{name} {part}" in timed]
        if "forward" in parts:
            records[name] |= speed({part: timed[f"{name} {part}"] for part in parts}, spec)
    return records


def progress(spec: Spec, name: str, record: Record) -> str:
    """A record as one line."""
    head = f"{spec.name:24} {name:18}"
    for reason in ("skipped", "error"):
        if reason in record:
            return f"{head} {reason}: {record[reason]}"
    parts = [
        f"{part} {record[part]['ms']:.3f} ms {record[part]['tflops'] or 0:.1f} TFLOP/s"
        for part in ("forward", "backward")
        if part in record
    ]
    if "error_of_largest" in record:
        parts.append(f"error {max(record['error_of_largest'].values()):.1e}")
    return f"{head} {'  '.join(parts)}"


def describe() -> Record:
    """Facts that a result depends on besides the shape."""
    device = dispatch.current_device()
    versions = {"jax": jax.__version__, "python": platform.python_version()}
    return {
        "command": " ".join(sys.argv),
        "platform": device.platform,
        "device": device.kind,
        "versions": versions,
    }


def run(
    shapes: list[str], names: list[str], *, json_file: str, seconds: float, peer: str, resume: bool
) -> int:
    """Benchmark the shapes one after the other; the exit code.

    It is 75 when the device is lost and --resume would go on.
    """
    start = time.monotonic()
    path = Path(json_file) if json_file else None
    results = json.loads(path.read_text())["results"] if resume and path and path.exists() else []
    about = describe()

    def write(new: list[dict]) -> None:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(about | {"results": results + new}, indent=1) + "\n")
            partial.replace(path)

    for shape in shapes:
        spec = SPECS[shape]
        done = {record["implementation"] for record in results if record["shape"] == shape}
        left = [name for name in names if name not in done]
        entry = lambda name, record, spec=spec: (
            {"shape": spec.name, "implementation": name} | record
        )
        if seconds and time.monotonic() - start > seconds:
            results += [
                entry(name, {"skipped": f"the budget of {seconds:.0f} s is spent"}) for name in left
            ]
            continue
        write([entry(name, {"error": CRASHED}) for name in left])
        try:
            records = bench_shape(spec, left, peer)
        except Exception as error:  # such as no memory for the inputs
            records = {name: {"error": one_line(error)} for name in left}
        results += [entry(name, record) for name, record in records.items()]
        for name, record in records.items():
            print(progress(spec, name, record), flush=True)
        write([])
        if any(
            text in record.get("error", "") for record in records.values() for text in DEVICE_LOST
        ):
            print("the device does not answer any more: start again with --resume", file=sys.stderr)
            return 75
    write([])
    return 0
