"""Training users/s of HSTU and a Transformer by length, depth and batch, whole steps.

    # about 10 minutes on 2 CPU cores; results/throughput.json and .png
    python -m experiments.speed.throughput
    python -m experiments.speed.throughput --quick    # the smallest cases; no results are kept

Both have width 64 and two heads; the Transformer is SASRec's block with a feed-forward layer of
256, and attention in plain XLA. Histories fill their rows, batches are ready on the device, and the
loss shares 128 negatives among 64 tokens, so that the blocks are most of the step. HSTU computes
relative position and time bias besides, which the Transformer has not. Two steps of each case in
turn, the second timed, medians; a ratio is that of neighbours in time.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common.figures import pyplot
from experiments.common.results import RESULTS, arguments, command_line, keep
from experiments.common.started import start
from gr_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig
from gr_jax.data.batches.batch import Batch
from gr_jax.training.run import keep_freed_memory

RESULT = RESULTS / "throughput.json"
ITEMS = 10_000
SHARED: dict[str, Any] = {"width": 64, "num_heads": 2}
MODELS = {
    "hstu": ModelConfig(qk_width=32, v_width=32, **SHARED),
    "transformer": ModelConfig(kind="sasrec", ffn_width=256, **SHARED),
}
# (sweep, events of a history, blocks, users of a batch)
CASES = (
    *(("length", length, 2, 8192 // length) for length in (64, 128, 256, 512, 1024)),
    *(("depth", 128, depth, 32) for depth in (1, 2, 4, 8)),
    *(("batch", 128, 2, users) for users in (8, 32, 128)),
)


def batch_of(length: int, users: int) -> Batch:
    """Users with histories of `length` events an hour apart on average, one a row."""
    rng = np.random.default_rng(0)
    item, label = (rng.integers(1, ITEMS + 1, (users, length)).astype(np.int32) for _ in range(2))
    times: Any = rng.exponential(3600, (users, length + 1)).cumsum(1).astype(np.int32)
    ones = np.ones((users, length), np.int32)
    position = np.broadcast_to(np.arange(length, dtype=np.int32), ones.shape)
    arrays: Any = (item, times[:, :-1], times[:, 1:], position, ones, label)
    return Batch(*arrays)


def measure(cases: list[tuple[str, int, int, int]], rounds: int) -> list[dict]:
    """Median step of both models in each case, interleaved."""
    # As training does: else a step pays for the pages that a larger one before it gave back.
    keep_freed_memory()
    key, runs = jax.random.key(0), []
    for sweep, length, depth, users in cases:
        for name, model in MODELS.items():
            config = Config(
                data=DataConfig(max_length=length, row_length=length),
                model=ModelConfig(**{**vars(model), "num_blocks": depth}),
                loss=LossConfig(kind="group", negatives=128, group=64),
                mesh=MeshConfig(data=1),
            )
            training = start(config, ITEMS)
            batch = training.on_device(batch_of(length, users))
            step = training.step.lower(training.state, batch, key).compile()
            case = {
                "sweep": sweep,
                "length": length,
                "blocks": depth,
                "users": users,
                "model": name,
            }
            runs.append(
                {"case": case, "step": step, "state": training.state, "batch": batch, "ms": []}
            )
            print(
                f"{sweep} {length} x {depth} blocks x {users} users, {name}: compiled", flush=True
            )
    for number in range(rounds + 1):
        for run in runs:
            for is_second in (
                False,
                True,
            ):  # the first finds the caches full of what the case before it needed
                begin = time.perf_counter()
                run["state"], _ = jax.block_until_ready(
                    run["step"](run["state"], run["batch"], key)
                )
                run["ms"] += [1000 * (time.perf_counter() - begin)] * (number >= 1 and is_second)
    rows = []
    for hstu, other in zip(runs[::2], runs[1::2], strict=True):
        ratio = statistics.median(b / a for a, b in zip(hstu["ms"], other["ms"], strict=True))
        for run in (hstu, other):
            ms = statistics.median(run["ms"])
            row = {
                "ms": ms,
                "least_ms": min(run["ms"]),
                "users_per_second": 1000 * run["case"]["users"] / ms,
            }
            rows.append(run["case"] | row | {"transformer_over_hstu": ratio})
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """Users a second by length, depth and batch."""
    figure, axes = pyplot().subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
    panels = (
        ("length", "length", "events of a history"),
        ("depth", "blocks", "blocks"),
        ("batch", "users", "users"),
    )
    for axis, (sweep, field, label) in zip(axes, panels, strict=True):
        for name in MODELS:
            of_model = [row for row in rows if row["sweep"] == sweep and row["model"] == name]
            x, y = ([row[f] for row in of_model] for f in (field, "users_per_second"))
            axis.plot(x, y, "o-", label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set(xlabel=label, ylabel="training users/s", title=f"by {sweep}")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each case")
    parser.add_argument(
        "--quick", action="store_true", help="the smallest cases; no results are kept"
    )
    args = parser.parse_args()
    rows = measure(list(CASES[:2] if args.quick else CASES), 2 if args.quick else args.rounds)
    for row in rows:
        about = f"{row['sweep']:7} {row['length']:5} {row['blocks']} blocks"
        about += f" {row['users']:4} users {row['model']:12}"
        print(
            f"{about} {row['ms']:8.1f} ms {row['users_per_second']:8.1f} users/s"
            f" {row['transformer_over_hstu']:.2f}x"
        )
    if not args.quick:
        device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores,"
        device += f" load {os.getloadavg()[1]:.1f}"
        made = {
            "command": command_line(),
            "device": device,
        }
        made |= {"jax": jax.__version__, "rounds": args.rounds, "width": SHARED["width"]}
        keep(RESULT, made | {"rows": rows})
        draw(rows, RESULT.with_suffix(".png"))


if __name__ == "__main__":
    main()
