"""Memory that `gr_jax.plan` predicts against what XLA allocates for the same step, on a CPU.

    python -m experiments.scale.plan_check  # 32 random configs that the numbers were not fitted to
    python -m experiments.scale.plan_check --seed=4 --cases=4 --json=FILE

Each config (width, heads, depth, row length, reach, loss, catalogue, dropout, remat, scan,
bfloat16) is compiled from shapes alone; about 5 s each. Other seeds fitted the numbers in
`gr_jax/planning/memory.py`. Blocks that are scanned (`model.scan_blocks`) are summed up apart: the
compiler shares their buffers in ways that the formulas follow less well.
"""

from __future__ import annotations

import os
import random
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Buffers are assigned before machine code is made: it need not be good code.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from experiments.common.results import RESULTS, arguments, command_line, keep  # noqa: E402
from gr_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig  # noqa: E402
from gr_jax.planning import compiled_step, memory  # noqa: E402
from gr_jax.planning.sizes import Sizes  # noqa: E402
from gr_jax.training import sharding  # noqa: E402

RESULT = RESULTS / "plan_check.json"
KINDS = ("unrolled", "scanned")


def random_case(rng: random.Random) -> tuple[Config, Sizes]:
    """A config of one to three blocks on 4096 or 8192 tokens."""
    length, dropout = rng.choice([64, 128, 256, 512, 1024]), rng.choice([0.0, 0.2])
    config = Config(
        data=DataConfig(
            max_length=rng.choice([length // 4, length // 2, length * 4 // 5]), row_length=length
        ),
        model=ModelConfig(
            width=rng.choice([32, 50, 64, 128]),
            num_heads=rng.choice([1, 2, 4]),
            qk_width=rng.choice([16, 25, 32]),
            v_width=rng.choice([16, 25, 32]),
            num_blocks=rng.choice([1, 2, 3]),
            remat=rng.random() < 0.3,
            scan_blocks=rng.random() < 0.3,
            compute_dtype=rng.choice(["float32", "float32", "bfloat16"]),
            dropout=dropout,
            input_dropout=dropout,
        ),
        loss=LossConfig(kind=rng.choice(["full", "group", "per_token"]), negatives=128, group=32),
        mesh=MeshConfig(data=1),
    )
    rows, items = 4096 // length * rng.choice([1, 2]), rng.choice([500, 3000, 12000, 50000])
    lengths = np.full(rows, config.data.max_length)
    return config, Sizes(items, config.data.max_length, rows, length, float(rows), lengths)


def compare(config: Config, sizes: Sizes) -> dict:
    """Planned and allocated bytes of one config."""
    mesh = sharding.make_mesh(config.mesh)
    parts = memory.memory(
        config, sizes, compiled_step.abstract_state(config, sizes, mesh), platform="cpu"
    )
    start = time.perf_counter()
    allocated = compiled_step.allocated(compiled_step.compile_step(config, sizes, mesh))
    planned = {part.what: part.bytes for part in parts}
    return {
        "config": describe(config, sizes),
        "scanned": config.model.scan_blocks,
        "planned": planned,
        "allocated": allocated,
        "error": sum(planned.values()) / allocated["peak"] - 1,
        "arguments_error": sum(part.bytes for part in parts[:3]) / allocated["argument"] - 1,
        "compile_s": time.perf_counter() - start,
    }


def summary(cases: list[dict]) -> dict:
    """How many are within 10 %, and the mean and largest error."""
    errors = [abs(case["error"]) for case in cases]
    within = sum(error <= 0.1 for error in errors)
    mean, worst = (float(f(errors)) if errors else None for f in (np.mean, np.max))
    return {
        "cases": len(cases),
        "within_10_percent": within,
        "mean_error": mean,
        "largest_error": worst,
    }


def describe(config: Config, sizes: Sizes) -> str:
    """A config in a few words."""
    m = config.model
    flags = [name for name in ("remat", "scan_blocks") if getattr(m, name)]
    flags += ["bfloat16"] * (m.compute_dtype == "bfloat16") + ["no dropout"] * (not m.dropout)
    return (
        f"D{m.width} {m.num_blocks} blocks {m.num_heads}x{m.qk_width}/{m.v_width},"
        f" {sizes.batch_rows} rows of {sizes.row_length}, N {sizes.max_tokens}, {config.loss.kind},"
        f" {sizes.num_items} items {' '.join(flags)}"
    ).strip()


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--seed", type=int, default=13, help="of the configs")
    parser.add_argument("--cases", type=int, default=32, help="how many")
    parser.add_argument("--json", default=str(RESULT), help="file for the results")
    args = parser.parse_args()
    rng, cases, about = random.Random(args.seed), [], {}
    for _ in range(args.cases):
        cases.append(compare(*random_case(rng)))
        last = cases[-1]
        total = sum(last["planned"].values()) / 2**20
        peak = last["allocated"]["peak"] / 2**20
        print(f"{last['error']:+6.1%} {total:8.1f} MiB planned {peak:8.1f} allocated", end="")
        print(f"  {last['config']}", flush=True)
        about = {
            "command": command_line(),
            "jax": jax.__version__,
            "seed": args.seed,
        }
        about |= {
            kind: summary([c for c in cases if c["scanned"] == (kind == "scanned")])
            for kind in KINDS
        }
        keep(args.json, about | {"cases": cases})
    for kind in KINDS:
        print(kind, about[kind])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
