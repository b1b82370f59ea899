"""Every implementation of HSTU attention against the float32 reference, on the device that is here.

    python -m experiments.kernels.kernel_check  # every implementation that can run
    python -m experiments.kernels.kernel_check --platform=cpu               # the same on the CPU
    # GPU kernels, interpreted
    python -m experiments.kernels.kernel_check --platform=cpu --interpret --length=48 --cases=2

Random packed rows with gaps, empty rows, sequences of 1 token and of a whole row; all mask rules;
head widths 25 to 256; float32 and bfloat16. A case passes when output and all gradients are within
the tolerance of the reference (over the largest entry; the reference runs on the CPU), two runs
agree to the last bit (not asked of XLA on a GPU, which adds in any order), and NaN in the padding
of q, k and v changes nothing. "gate" is the u * LN(attended) kernel and "cached" the attention to
cached keys, against XLA. Goes on after a failure; the exit code is 1 when something failed.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures import TimeoutError as OutOfTime
from typing import Any, NamedTuple

from experiments.common.results import arguments, command_line, keep

ROWS, HEADS, SEEDS = 4, 2, 3
TOLERANCE = {"float32": 3e-3, "bfloat16": 2e-2}  # float32 products may be tf32 on a GPU
MASKS = {
    "plain": {},
    "window": {"window": 7},
    "targets": {"targets": True},
    "all": {"targets": True, "window": 7},
}


class Case(NamedTuple):
    implementation: str
    mask: str
    qk_width: int
    v_width: int
    dtype: str
    bias: bool


def all_cases(implementations: list[str]) -> list[Case]:
    """Every head width with everything on, then every mask rule at two widths, then no bias."""
    shapes = [(w, w, t) for w in (64, 128, 25, 50, 256) for t in ("bfloat16", "float32")] + [
        (50, 25, "float32")
    ]
    cases = [("all", *shape, True) for shape in shapes]
    cases += [
        (mask, *shape, True)
        for mask in list(MASKS)[:-1]
        for shape in ((64, 64, "bfloat16"), (25, 25, "float32"))
    ]
    cases += [("plain", 128, 128, "bfloat16", False), ("targets", 64, 64, "bfloat16", False)]
    return [Case(implementation, *case) for case in cases for implementation in implementations]


def random_inputs(case: Case, length: int, seed: int) -> tuple[dict, dict]:
    """Float inputs with `d_out`, and integer inputs, as numpy arrays."""
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(seed)
    segments, targets = (np.zeros((ROWS, length), dtype) for dtype in (np.int32, bool))
    for row in range(ROWS):
        start, segment = 0, 0
        while start < length and not (row == 1 and seed == 0):  # one empty row
            whole = row == 0 and seed == 0
            tokens = (
                length if whole else 1 if rng.random() < 0.2 else int(rng.integers(1, length // 2))
            )
            stop, segment = min(start + tokens, length), segment + 1
            segments[row, start:stop] = segment
            tail = int(rng.integers(0, stop - start + 1)) // 2
            targets[row, stop - tail : stop] = True
            start = stop + int(rng.integers(0, 3))
    shape = ROWS, length, HEADS
    widths = {"q": case.qk_width, "k": case.qk_width, "v": case.v_width, "d_out": case.v_width}
    dtype = jnp.dtype(case.dtype)
    floats = {
        name: rng.standard_normal((*shape, n), np.float32).astype(dtype)
        for name, n in widths.items()
    }
    rows: dict[str, np.ndarray] = {"segments": segments}
    if case.bias:
        floats["position_table"] = rng.standard_normal(length // 2, np.float32)
        floats["time_table"] = rng.standard_normal(60, np.float32)
        rows |= random_times(rng, segments.shape)
    if MASKS[case.mask].get("targets"):
        rows["targets"] = targets
    return floats, rows


def random_times(rng, shape: tuple[int, int]) -> dict:
    """Query and key times without a pair that rounding could put into another time bucket."""
    import numpy as np

    keys = np.cumsum(rng.lognormal(6, 3, shape).clip(0, 1e5), 1).astype(np.int32)
    queries = keys + rng.integers(0, 10**5, shape).astype(np.int32)
    while True:
        apart = np.abs(queries[:, :, None].astype(float) - keys[:, None])
        bucket = np.log(np.maximum(apart, 1)) / np.float32(0.301)
        near = ((np.abs(bucket - np.round(bucket)) < 1e-5) & (apart > 1)).any(2)
        if not near.any():
            return {"key_times": keys, "query_times": queries}
        queries[near] += rng.integers(1, 1000, near.sum()).astype(np.int32)


def output_and_gradients(
    case: Case, implementation: str, length: int, interpret: bool, floats: dict, rows: dict
) -> Any:
    """Output and, where the implementation has them, the gradients of all float inputs."""
    import jax

    from pallas_kernels import hstu_attention

    call = lambda floats: hstu_attention(
        **floats,
        **rows,
        window=MASKS[case.mask].get("window"),
        max_length=length,
        scale=case.qk_width**-0.5,
        implementation=implementation,
        interpret=interpret,
    )
    inputs = {name: x for name, x in floats.items() if name != "d_out"}
    if implementation == "jax_triton":
        return call(inputs), {}
    out, backward = jax.vjp(call, inputs)
    return out, backward(floats["d_out"])[0]


def compiled(case: Case, length: int, interpret: bool):
    import jax

    example = random_inputs(case, length, 0)
    function = functools.partial(output_and_gradients, case, case.implementation, length, interpret)
    return jax.jit(function).lower(*example).compile()


def check(case: Case, executable, length: int, device: str) -> dict[str, Any]:
    """Largest errors over the seeds, and a list of what is wrong."""
    import jax
    import numpy as np

    to32 = lambda x: np.asarray(x).astype(np.float32)
    worst: dict[str, float] = {}
    wrong: list[str] = []
    for seed in range(SEEDS):
        floats, rows = random_inputs(case, length, seed)
        result = jax.tree.map(to32, executable(floats, rows))
        again = jax.tree.map(to32, executable(floats, rows))
        padding = (rows["segments"] == 0)[..., None, None]
        poisoned = {
            name: np.where(padding, np.array(np.nan, x.dtype), x) if name in "qkv" else x
            for name, x in floats.items()
        }
        nan = jax.tree.map(to32, executable(poisoned, rows))
        same = lambda a, b: all(
            np.array_equal(x, y)
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        )
        in_order = (
            case.implementation != "xla" or device == "cpu"
        )  # XLA scatters in any order on a GPU
        if in_order and not same(result, again):
            wrong.append("two runs differ")
        close = lambda x, y: (
            np.abs(x - y).max() <= TOLERANCE[case.dtype] * np.abs(x).max()
        )  # NaN is not
        if not (
            same(result, nan)
            if in_order
            else all(map(close, jax.tree.leaves(result), jax.tree.leaves(nan)))
        ):
            wrong.append("NaN in the padding leaks")
        tokens = [result[0]] + [result[1][name] for name in "qkv" if name in result[1]]
        if any(np.any(np.where(padding, x, 0)) for x in tokens):
            wrong.append("padding is not 0")
        with jax.default_device(jax.devices("cpu")[0]):
            exact = {name: to32(x) for name, x in floats.items()}
            expected = jax.tree.map(to32, reference(case, length)(exact, rows))
        pairs = [("out", result[0], expected[0])] + [
            ("d_" + n, x, expected[1][n]) for n, x in result[1].items()
        ]
        for name, ours, theirs in pairs:
            error = float(np.abs(ours - theirs).max()) / max(float(np.abs(theirs).max()), 1e-30)
            error = float("inf") if error != error else error
            worst[name] = max(worst.get(name, 0.0), error)
    wrong += [f"{name} is off by {e:.1e}" for name, e in worst.items() if e > TOLERANCE[case.dtype]]
    return {"errors": worst, "wrong": sorted(set(wrong))}


def check_gate(width: int, dtype: str, interpret: bool) -> dict[str, Any]:
    """Largest errors of the u * LN(attended) kernels against float32 XLA."""
    import jax
    import numpy as np

    from pallas_kernels.elementwise import normalised_gate

    rng = np.random.default_rng(0)
    inputs = [
        rng.standard_normal((3, 333, width), np.float32).astype(jax.numpy.dtype(dtype))
        for _ in range(3)
    ]

    def results(implementation: str, u, attended, d_out):
        gate = lambda u, a: normalised_gate(
            u, a, 1e-6, implementation=implementation, interpret=interpret
        )
        out, backward = jax.vjp(gate, u, attended)
        return {"out": out, **dict(zip(("d_u", "d_attended"), backward(d_out), strict=True))}

    run = lambda name, dtype: jax.jit(functools.partial(results, name))(
        *(x.astype(dtype) for x in inputs)
    )
    to32 = lambda x: np.asarray(x).astype(np.float32)
    ours, exact = jax.tree.map(
        to32, (run("pallas_triton", inputs[0].dtype), run("xla", np.float32))
    )
    errors = {
        name: float(np.abs(ours[name] - x).max() / np.abs(x).max()) for name, x in exact.items()
    }
    wrong = [f"{name} is off by {e:.1e}" for name, e in errors.items() if not e < TOLERANCE[dtype]]
    return {"errors": errors, "wrong": wrong}


def check_cached(width: int, dtype: str, interpret: bool) -> dict[str, Any]:
    """Largest errors of the attention to cached keys, one query and many, against float32 XLA."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pallas_kernels import hstu_cached_attention

    rng = np.random.default_rng(0)
    rows, heads, room = 3, 2, 300
    normal = lambda *shape: rng.standard_normal(shape, np.float32).astype(jnp.dtype(dtype))
    tables = {
        name: rng.standard_normal(n, np.float32)
        for name, n in (("position_table", 200), ("time_table", 60))
    }
    times = np.cumsum(rng.lognormal(6, 3, (rows, room)).clip(0, 1e6), 1).astype(np.int32)
    ends = np.array([[room], [150], [0]], np.int32)
    found = {}
    for queries in (1, 100):
        q, own_k, own_v = (normal(rows, queries, heads, width) for _ in range(3))
        arrays = {
            "q": q,
            "k": normal(rows, heads, room, width),
            "v": normal(rows, heads, room, width),
        }
        arrays |= {"own_k": own_k, "own_v": own_v, **tables}
        same = {
            "ends": ends,
            "positions": ends,
            "query_times": times[:, -1:] + 60,
            "key_times": times,
        }
        same["own_times"] = same["query_times"] - 30

        def run(name: str, dtype, device, arrays=arrays, same=same, width=width):
            floats = {
                key: x.astype(dtype) if x.dtype != np.float32 else x for key, x in arrays.items()
            }
            with jax.default_device(device):
                return hstu_cached_attention(
                    **floats, **same, max_length=room, scale=width**-0.5, implementation=name,
                    interpret=interpret and name != "xla",
                )  # fmt: skip

        ours = np.asarray(run("pallas_triton", q.dtype, jax.devices()[0])).astype(np.float32)
        exact = np.asarray(run("xla", np.float32, jax.devices("cpu")[0]))
        found[f"{queries} queries"] = float(np.abs(ours - exact).max() / np.abs(exact).max())
    wrong = [f"{name} is off by {e:.1e}" for name, e in found.items() if not e < TOLERANCE[dtype]]
    return {"errors": found, "wrong": wrong}


@functools.cache
def _reference(mask: str, qk_width: int, length: int, bias: bool):
    import jax

    case = Case("reference", mask, qk_width, 0, "float32", bias)
    return jax.jit(functools.partial(output_and_gradients, case, "reference", length, False))


def reference(case: Case, length: int):
    """Compiled reference of a case; the implementations share it."""
    return _reference(case.mask, case.qk_width, length, case.bias)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--implementation", default="", help="comma-separated; default: all")
    parser.add_argument("--platform", default="", help="cpu, or gpu; default: the best there is")
    parser.add_argument(
        "--interpret", action="store_true", help="run the GPU kernels in their interpreters"
    )
    parser.add_argument("--length", type=int, default=300, help="tokens of a row")
    parser.add_argument("--cases", type=int, default=0, help="cases per implementation; 0 = all")
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="begin no case after this time; 0 = no limit"
    )
    parser.add_argument("--json", default="", help="file for the results")
    args = parser.parse_args()
    if args.platform:
        os.environ["JAX_PLATFORMS"] = args.platform if args.platform == "cpu" else "cuda,cpu"
    import jax

    from pallas_kernels import IMPLEMENTATIONS, dispatch
    from pallas_kernels.bench.measure import one_line

    device, start = dispatch.current_device(), time.monotonic()
    names = (
        args.implementation.split(",")
        if args.implementation
        else [n for n in IMPLEMENTATIONS if n != "reference"]
    )
    cases = all_cases(names)[: args.cases * len(names) or None]
    print(
        f"{device.kind}, jax {jax.__version__}, {len(cases)} cases;"
        " errors over the largest entry of the reference"
    )
    records, failed, printed = [], 0, set()

    def about(case: Case, record: dict) -> None:
        records.append(case._asdict() | record)
        if args.json:
            text = {
                "command": command_line(),
                "device": device.kind,
                "jax": jax.__version__,
                "cases": records,
            }
            keep(args.json, text)
        if "skipped" in record and (case.implementation, case.dtype, record["skipped"]) in printed:
            return  # one line for all cases of a reason
        printed.add((case.implementation, case.dtype, record.get("skipped")))
        what = (
            record.get("skipped")
            or record.get("error", "")[:300]
            or ", ".join(record.get("wrong", []))
            or "ok"
        )
        worst = f"{max(record['errors'].values()):.1e}" if "errors" in record else ""
        widths = f"{case.qk_width}/{case.v_width}"
        bias = "bias" if case.bias else ""
        name = f"{case.implementation:18} {case.mask:9} {widths:8} {case.dtype:9} {bias:5}"
        print(f"{name}{worst:>8}  {what}", flush=True)

    extras = [("gate", check_gate, 50, "float32"), ("gate", check_gate, 512, "bfloat16")]
    extras += [("cached", check_cached, 50, "float32"), ("cached", check_cached, 128, "bfloat16")]
    for mask, check_one, width, dtype in extras if "pallas_triton" in names else ():
        case = Case("pallas_triton", mask, width, width, dtype, mask == "cached")
        reason = dispatch.why_not("pallas_triton", device, dtype, 1)
        if reason and not args.interpret:
            about(case, {"skipped": reason})
            continue
        try:
            record = check_one(width, dtype, args.interpret)
        except Exception as error:  # attention matters as much
            record = {"error": one_line(error, 2000)}
        failed += "error" in record or bool(record["wrong"])
        about(case, record)

    pool = ThreadPoolExecutor(os.cpu_count())  # compilers use one core each
    running = {}
    for case in cases:
        interpreted = args.interpret and case.implementation not in ("xla", "reference")
        reason = dispatch.why_not(
            case.implementation, device, case.dtype, max(case.qk_width, case.v_width)
        )
        if reason and not interpreted:
            about(case, {"skipped": reason})
        else:
            running[pool.submit(compiled, case, args.length, interpreted)] = case
    left = dict(running)
    try:
        for future in as_completed(running, timeout=args.seconds or None):
            case = left.pop(future)
            try:
                record = check(case, future.result(), args.length, device.platform)
            except Exception as error:  # the other cases matter as much
                record = {"error": one_line(error, 2000)}
            failed += "error" in record or bool(record.get("wrong"))
            about(case, record)
            if args.seconds and time.monotonic() - start > args.seconds:
                raise OutOfTime
    except OutOfTime:
        for case in left.values():
            about(case, {"skipped": f"the budget of {args.seconds:.0f} s is spent"})
    checked = sum("skipped" not in record for record in records)
    print(f"{checked} checked, {failed} failed, {len(records) - checked} skipped")
    sys.stdout.flush()
    os._exit(
        1 if failed or not checked else 0
    )  # without waiting for compilations that are no longer wanted


if __name__ == "__main__":
    main()
