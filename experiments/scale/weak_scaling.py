"""Weak scaling: the plan for 1 to 256 H100, and virtual devices of one CPU measured.

    # the plan for 1 to 256 H100: results/weak_scaling.json and .png
    python -m experiments.scale.weak_scaling
    python -m experiments.scale.weak_scaling --measure  # and 1 to 8 virtual devices of this machine

The plan is a roofline at peak rates of data sheets (NVLink inside nodes of eight, 400 Gb/s for each
device between them): once with communication after the work and once hidden behind it. Virtual
devices share the cores of one machine, so what is measured is the overhead of dividing the work,
and no scaling: on c cores ideal time grows as devices / c.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

from experiments.common.figures import pyplot  # noqa: E402
from experiments.common.results import RESULTS, arguments, command_line, keep  # noqa: E402
from experiments.common.started import start  # noqa: E402
from experiments.kernels.gpu_train_step import random_batch  # noqa: E402
from gr_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig, TrainConfig  # noqa: E402
from gr_jax.hardware import DEVICES  # noqa: E402
from gr_jax.planning.estimate import make_plan, with_row_wise_tables  # noqa: E402
from gr_jax.planning.sizes import sizes_of  # noqa: E402
from gr_jax.training import sharding  # noqa: E402
from pallas_kernels.specs import SPECS  # noqa: E402

USERS, MEAN_LENGTH = 64, 1000.0  # users of a device
ITEMS = 39_064 * 256 - 1  # 256 devices divide the entries of 10 million items
ROWS, LENGTH = 8, 256  # measured: rows of a device


def planned(devices: int, row_wise: bool) -> dict:
    """Plan of a wide model on H100s, 64 users each, histories of up to 4096 events."""
    config = Config(
        data=DataConfig(max_length=4096, row_length=4096),
        model=ModelConfig(
            width=512,
            num_blocks=8,
            num_heads=4,
            qk_width=128,
            v_width=128,
            compute_dtype="bfloat16",
            remat=True,
        ),
        loss=LossConfig(kind="group", negatives=512, group=128),
        train=TrainConfig(batch_users=USERS * devices),
    )
    sizes = sizes_of(config, items=ITEMS, mean_length=MEAN_LENGTH, shards=devices)
    config = with_row_wise_tables(config) if row_wise else config
    plan = make_plan(config, sizes, DEVICES["h100"], data=devices, model=1)
    return {
        "tables": "row-wise, all_to_all" if row_wise else "dense AdamW",
        "devices": devices,
        "step_s": plan.cost.seconds,
        "overlapped_step_s": plan.cost.overlapped_seconds,
        "memory_gib": plan.bytes / 2**30,
        "users_per_second": sizes.users_per_batch / plan.cost.seconds,
        "mfu": plan.cost.utilisation(devices),
        "terms": {term.what: term.seconds for term in plan.cost.terms},
    }


def measured(devices: int, steps: int) -> dict:
    """Median time of a step of a small model on virtual devices, 8 rows of 256 tokens each."""
    config = Config(
        data=DataConfig(max_length=200, row_length=LENGTH),
        model=ModelConfig(width=64, num_blocks=2, num_heads=2, qk_width=32, v_width=32),
        loss=LossConfig(kind="group", negatives=128, group=32),
        mesh=MeshConfig(data=devices),
    )
    items = 20_000
    training, key = start(config, items), jax.random.key(0)
    batch = training.on_device(
        random_batch(replace(SPECS["ml_1m-base-bias"], rows=ROWS * devices), items)
    )
    step, times = sharding.on_mesh(training.mesh, training.step), []
    for _ in range(steps + 2):
        begin = time.perf_counter()
        training.state, metrics = step(training.state, batch, key)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - begin)
    seconds = statistics.median(times[2:])
    return {
        "devices": devices,
        "step_s": seconds,
        "tokens_per_second": ROWS * LENGTH * devices / seconds,
    }


def draw(record: dict, path: Path) -> None:
    """Users a second of a device by plan, the terms of a step, and measured tokens a second."""
    plot = pyplot()
    panels = 3 if record["measured"] else 2
    figure, axes = plot.subplots(1, panels, figsize=(4.8 * panels, 3.8), constrained_layout=True)
    for tables, colour in (("dense AdamW", "C0"), ("row-wise, all_to_all", "C1")):
        plan = [p for p in record["planned"] if p["tables"] == tables]
        devices = [p["devices"] for p in plan]
        for name, style, label in (
            ("step_s", "-", "communication waits"),
            ("overlapped_step_s", "--", "hidden"),
        ):
            axes[0].plot(
                devices,
                [USERS / p[name] for p in plan],
                style,
                color=colour,
                label=f"{tables}, {label}",
            )
        for term, style in (("compute", ":"), ("memory", "--"), ("links", "-")):
            seconds = [
                sum(s for what, s in p["terms"].items() if what.startswith(term)) for p in plan
            ]
            shown = [1e3 * s or None for s in seconds]
            axes[1].plot(devices, shown, style, color=colour, label=f"{tables}, {term}")
    axes[0].set(
        title=f"Planned: H100, {USERS} users each",
        ylabel="users/s of a device, at peak rates",
        yscale="log",
    )
    axes[1].set(title="Planned: terms of a step", ylabel="ms at peak rates", yscale="log")
    if record["measured"]:
        found = record["measured"]
        axes[2].plot(
            [m["devices"] for m in found], [m["tokens_per_second"] / 1e3 for m in found], marker="o"
        )
        axes[2].set(
            title=f"Measured: virtual devices, {record['cores']} cores",
            ylabel="thousand tokens/s in all",
        )
        axes[2].set_ylim(bottom=0)
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axis.set_xlabel("devices")
        axis.grid(alpha=0.3)
    for axis in axes[:2]:
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--measure", action="store_true", help="also time 1 to 8 virtual devices")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument(
        "--json", default=str(RESULTS / "weak_scaling.json"), help="file for the results"
    )
    args = parser.parse_args()
    if args.measure:
        jax.config.update("jax_num_cpu_devices", 8)
    record = {
        "command": command_line(),
        "jax": jax.__version__,
        "cores": os.cpu_count(),
        "planned": [planned(2**i, row_wise) for row_wise in (False, True) for i in range(9)],
        "measured": [measured(n, args.steps) for n in (1, 2, 4, 8)] if args.measure else [],
    }
    for p in record["planned"]:
        about = f"{1e3 * p['step_s']:9.2f} ms, {p['memory_gib']:6.1f} GiB, MFU {p['mfu']:.1%}"
        print(f"{p['tables']:22} {p['devices']:4} H100: {about}")
    for m in record["measured"]:
        print(
            f"{m['devices']:4} virtual: {1e3 * m['step_s']:9.1f} ms,"
            f" {m['tokens_per_second']:,.0f} tokens/s"
        )
    keep(args.json, record)
    draw(record, Path(args.json).with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
