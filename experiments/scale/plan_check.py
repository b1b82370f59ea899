"""Memory that `gr_jax.plan` predicts for a GPU, against XLA's for an H100 that is not there.

    python -m experiments.scale.plan_check              # a minute a case; results/plan_check.json
    python -m experiments.scale.plan_check --recorded   # the formulas on recorded allocations

Each case changes one thing of a model (depth, widths, loss, remat, scan, dtype, dropout, rows); its
whole training step is compiled from shapes alone. Needs the packages of kernel_compile.py; nothing
runs. Attention is the kernel `pallas_triton`: that of `xla` keeps its scores in memory, which the
formulas do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from gr_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig  # noqa: E402
from gr_jax.planning import compiled_step, memory  # noqa: E402
from gr_jax.planning.estimate import abstract_mesh  # noqa: E402
from gr_jax.planning.sizes import Sizes  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results" / "plan_check.json"
LARGE = {"loss": "full", "items": 20_000}
CASES: list[dict[str, Any]] = [
    {"num_blocks": 2},
    {"num_blocks": 4},
    {"num_blocks": 8},
    {"num_blocks": 4, "remat": True},
    {"num_blocks": 8, "remat": True},
    {"num_blocks": 2, "loss": "full"},
    {"num_blocks": 2, "loss": "per_token"},
    {"num_blocks": 4, "compute_dtype": "float32"},
    {"num_blocks": 4, "drop": 0.0},
    {"num_blocks": 4, "scan_blocks": True},
    {"num_blocks": 4, "scan_blocks": True, "remat": True},
    {"num_blocks": 8, "width": 256},
    {"num_blocks": 8, "v_width": 128},
    {"num_blocks": 8, "qk_width": 128},
    {"num_blocks": 4, "items": 100_000},
    {"num_blocks": 4, "items": 100_000, "loss": "full"},
    {"num_blocks": 4, "rows": 32, "length": 1024},
    # The formulas were made without looking at these.
    {"num_blocks": 3, "width": 64, "num_heads": 4, "qk_width": 16, "v_width": 16} | LARGE,
    {"num_blocks": 6, "width": 192, "remat": True, "loss": "full", "items": 50_000},
    {"num_blocks": 2, "compute_dtype": "float32", "rows": 64, "length": 512, "loss": "per_token"},
    {"num_blocks": 12, "width": 96, "num_heads": 3, "drop": 0.0},
]


def make_case(
    *,
    rows: int = 128,
    length: int = 256,
    items: int = 5000,
    loss: str = "group",
    drop: float = 0.2,
    **model: Any,
) -> tuple[Config, Sizes]:
    """A config of bfloat16 blocks of two heads on 32,768 tokens, and its sizes."""
    settings: dict[str, Any] = {"width": 128, "num_heads": 2, "qk_width": 32, "v_width": 64}
    settings |= {"compute_dtype": "bfloat16", "attention": "pallas_triton"} | model
    longest = length * 4 // 5
    config = Config(
        data=DataConfig(max_length=longest, row_length=length),
        model=ModelConfig(**settings, dropout=drop, input_dropout=drop),
        loss=LossConfig(kind=loss, negatives=128, group=32),
        mesh=MeshConfig(data=1),
    )
    sizes = Sizes(items, longest, rows, length, float(rows), np.full(rows, longest))
    return config, sizes


def planned(config: Config, sizes: Sizes) -> dict[str, float]:
    """Bytes by part of the plan for one GPU."""
    state = compiled_step.abstract_state(config, sizes, abstract_mesh(1, 1))
    return {part.what: part.bytes for part in memory.on_gpu(config, sizes, state)}


def allocated(config: Config, sizes: Sizes) -> dict[str, int]:
    """Bytes that XLA allocates on an H100."""
    from experiments.kernels.kernel_compile import TARGET

    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=TARGET, topology="1x1x1"
    )
    mesh = topologies.make_mesh(topology, (1, 1), ("data", "model"))
    return compiled_step.allocated(compiled_step.compile_step(config, sizes, mesh))


def compare(changes: dict[str, Any], found: dict[str, int]) -> dict[str, Any]:
    """The plan of a case beside its allocation."""
    parts = planned(*make_case(**changes))
    given = sum(parts[name] for name in ("parameters", "optimizer state", "batch"))
    return {
        "case": changes,
        "planned": parts,
        "allocated": found,
        "error": sum(parts.values()) / found["peak"] - 1,
        "given_error": given / found["argument"] - 1,
    }


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Number of cases within 10 %, and the mean and largest error."""
    errors = [abs(case["error"]) for case in cases]
    return {
        "cases": len(cases),
        "within_10_percent": sum(error <= 0.1 for error in errors),
        "mean_error": float(np.mean(errors)),
        "largest_error": max(errors),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recorded", action="store_true", help="compile nothing")
    parser.add_argument("--json", type=Path, default=RESULTS, help="file for the results")
    args = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    about = {"command": "python -m experiments.scale.plan_check", "jax": jax.__version__}
    about |= {"target": "NVIDIA H100 80GB HBM3, not there"}
    if args.recorded:
        about["jax"] = known["jax"]
    recorded = {str(case["case"]): case for case in known.get("cases", ())}

    cases = []
    for changes in CASES:
        start = time.perf_counter()
        if args.recorded:
            found, seconds = (recorded[str(changes)][x] for x in ("allocated", "compile_s"))
        else:
            found = allocated(*make_case(**changes))
            seconds = time.perf_counter() - start
        cases.append(compare(changes, found) | {"compile_s": seconds})
        total, peak = sum(cases[-1]["planned"].values()) / 2**20, found["peak"] / 2**20
        print(
            f"{cases[-1]['error']:+6.1%} {total:8.1f} MiB planned {peak:8.1f} allocated  {changes}",
            flush=True,
        )
        text = json.dumps(about | {"summary": summary(cases), "cases": cases}, indent=1)
        args.json.write_text(text + "\n")
    print(summary(cases))


if __name__ == "__main__":
    sys.exit(main())
