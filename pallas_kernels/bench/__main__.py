"""Speed, memory and error of HSTU attention on named shapes, next to other libraries.

    python -m pallas_kernels.bench                                   # this device's default shapes
    python -m pallas_kernels.bench --list                            # the names of all shapes
    python -m pallas_kernels.bench --shape='4x128-*' --implementation=xla,cudnn --json=out.json
    python -m pallas_kernels.bench --tune --shape='4x128-l*'         # tries block sizes

Milliseconds are medians of interleaved rounds; `backward` is forward+backward less forward. TFLOP/s
count the matmuls of the causal half, whatever a program computes. An implementation that cannot run
here is listed with its reason. Results are written after each shape, and --resume goes on after a
crash without what is there already.
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import os
import sys
from pathlib import Path

from pallas_kernels import block_sizes, dispatch, specs
from pallas_kernels.bench import measure, rivals, tuning
from pallas_kernels.specs import SPECS

GPU_SHAPES = "4x128-l4096,4x128-l4096-bias,4x128-sparse80,4x128-sparse80-padded"
CONTENDERS = (*(name for name in dispatch.IMPLEMENTATIONS if name != "reference"), *rivals.RIVALS)
NAMES = ("reference", *CONTENDERS)


def select(text: str, known: list[str], flag: str) -> list[str]:
    """The known names that a comma-separated list of names and globs matches.

    Exits with 2 where one matches none.
    """
    chosen: list[str] = []
    for pattern in text.split(","):
        found = fnmatch.filter(known, pattern)
        if not found:
            nearest = difflib.get_close_matches(pattern, known, 1, cutoff=0.0)[0]
            print(f"{flag}: no {pattern!r}; did you mean {nearest!r}?", file=sys.stderr)
            raise SystemExit(2)
        chosen += [name for name in found if name not in chosen]
    return chosen


def main(argv: list[str] | None = None) -> int:
    """Time, or with --tune tune, the shapes and implementations of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--implementation", default="", help=f"comma-separated names or globs of {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--shape", default="", help="comma-separated names or globs; --list shows them"
    )
    parser.add_argument("--json", default="", help="file for the results")
    parser.add_argument(
        "--resume", action="store_true", help="keep the results in --json and do the rest"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.0,
        help="start no further shape after this time; 0 = no limit",
    )
    parser.add_argument(
        "--peer", default="", help="checkout of a PyTorch HSTU implementation to time as well"
    )
    parser.add_argument("--tune", action="store_true", help="try block sizes and write the table")
    parser.add_argument(
        "--table", default="", help="file that --tune writes; default: the table in the package"
    )
    parser.add_argument("--list", action="store_true", help="list the shapes and end")
    args = parser.parse_args(argv)
    if args.list:
        for spec in SPECS.values():
            size = f"[{spec.rows}, {spec.length}] x {spec.heads} x {spec.qk_width} {spec.dtype:9}"
            flops = f"{specs.flops(spec) / 1e12:.4f} TFLOP forward"
            print(f"{spec.name:32} {size} sparsity {specs.sparsity(spec):4.0%} {flops}")
        return 0

    names = select(args.implementation or ",".join(CONTENDERS), list(NAMES), "--implementation")
    shapes = select(args.shape, list(SPECS), "--shape") if args.shape else []
    if args.peer:  # torch needs some of the GPU's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not shapes:
        on_cpu = dispatch.current_device().platform == "cpu"
        shapes = select("tiny" if on_cpu else GPU_SHAPES, list(SPECS), "--shape")
    if args.tune:
        table = Path(args.table) if args.table else block_sizes.TABLE
        return tuning.run(shapes, names, table=table, seconds=args.seconds)
    options = {"json_file": args.json, "seconds": args.seconds}
    return measure.run(shapes, names, peer=args.peer, resume=args.resume, **options)


if __name__ == "__main__":
    raise SystemExit(main())
