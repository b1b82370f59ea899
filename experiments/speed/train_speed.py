"""Users/s and tokens/s of whole training steps on a CPU, host packing included, by loss and size.

    # every case, 3 interleaved rounds, about 10 minutes on 2 cores
    python -m experiments.speed.train_speed
    python -m experiments.speed.train_speed --cases=base/full     # one of them

Data are generated with the length distribution of MovieLens-1M (log-normal, clipped to 18-200
events, mean 109) or of Amazon Books (mean 11.6, at most 50; 695,762 items), Zipf items and
increasing times. Each case runs in its own process; rounds are interleaved so that a slow spell of
the machine meets all cases. The ratio is against the public PyTorch code (of June 2025) on an idle
2-core machine, a batch of 128 such users, measured once and quoted here. Its negatives are drawn
per token: only `per_token` is the same mathematics, `full` and `group` are other losses.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

from experiments.common.results import ROOT, arguments, command_line, in_own_process
from experiments.common.started import start
from gr_jax.config import Config, DataConfig, LossConfig, MeshConfig, files
from gr_jax.data.batches import epochs
from gr_jax.data.batches.loader import read_batches
from gr_jax.data.dataset import Catalogue, Dataset, Events
from gr_jax.training.run import keep_freed_memory

USERS = 128  # mean users of a batch
# ms a step of 128 users of the PyTorch reference on an idle 2-core machine, where it took 3.2 GiB
# (base), 4.5 GiB (large) and 2.4 GiB (books).
REFERENCE_MS = {"base": 2687.0, "large": 7677.0, "books": 1878.0, "sasrec": None}
CASES = (
    "base/group",
    "base/full",
    "base/per_token",
    "large/group",
    "large/full",
    "books/group",
    "sasrec/full",
)


def case_config(case: str) -> Config:
    """The config of `model/loss`, one device."""
    model, loss = case.split("/")
    if model == "books":
        config = files.load(str(ROOT / "configs/amazon.py:books"))
    else:
        config = files.load(str(ROOT / f"configs/ml_1m.py:{model}"))
    negatives = 512 if model == "books" else 128
    group = min(128, config.data.row_length)
    loss_config = LossConfig(kind=loss, negatives=negatives, group=group)
    return Config(
        data=config.data,
        model=config.model,
        loss=loss_config,
        mesh=MeshConfig(data=1),
        train=config.train,
    )


def generated_log(config: DataConfig, model: str, users: int) -> Dataset:
    """A log whose training sequences have the length distribution of the data set."""
    rng = np.random.default_rng(0)
    if model == "books":
        num_items, lengths = 695_762, np.clip(rng.lognormal(2.1, 0.9, users).astype(int), 4, 50)
    else:
        num_items, lengths = (
            3_706,
            np.clip(rng.lognormal(np.log(97.5), 0.75, users).astype(int), 18, 200),
        )
    counts = lengths + 3  # two held-out events, and a label for the last training token
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(offsets[-1])
    items = 1 + (num_items * rng.random(total) ** 3).astype(np.int32)  # a power law of popularity
    times = 10**9 + np.cumsum(rng.integers(1, 10**4, total))
    events = Events(offsets, items.astype(np.int32), times)
    return Dataset(Catalogue(Path("."), {"items": num_items}), events)


def measure(case: str, steps: int, *, keep_memory: bool) -> dict:
    """Median and least step time of one case in this process."""
    if keep_memory:
        keep_freed_memory()
    config = case_config(case)
    model = case.split("/")[0]
    dataset = generated_log(config.data, model, users=20 * USERS)
    rows = epochs.retrieval_batches(dataset, config.data, batch_users=USERS)
    training, key = start(config, dataset.num_items), jax.random.key(0)
    batches = read_batches(rows, 0, 3 + steps)
    marks, losses = [], []
    for batch in batches:
        training.state, metrics = training.step(training.state, training.on_device(batch), key)
        losses.append(float(metrics["loss"]))
        marks.append(time.perf_counter())
    seconds = np.diff(marks)[2:]  # the first steps compile and warm up
    users_per_step = len(rows.spans) / rows.steps(0)
    tokens_per_step = float(rows.spans.length.sum()) / rows.steps(0)
    scale = USERS / users_per_step
    return {
        "case": case,
        "ms": 1000 * float(np.median(seconds)) * scale,
        "min_ms": 1000 * float(seconds.min()) * scale,
        "users_per_second": users_per_step / float(np.median(seconds)),
        "tokens_per_second": tokens_per_step / float(np.median(seconds)),
        "fill": rows.fill,
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated model/loss")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps in each round")
    parser.add_argument("--json", default="", help="file for the results")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument(
        "--default-malloc", action="store_true", help="leave glibc's settings as they are"
    )
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.steps, keep_memory=not args.default_malloc)))
        return
    results: dict[str, list[dict]] = {case: [] for case in args.cases.split(",")}
    for number in range(args.rounds):
        for case in results:
            flags = ["--default-malloc"] * args.default_malloc
            results[case].append(in_own_process(f"--one={case}", f"--steps={args.steps}", *flags))
            print(
                f"round {number + 1}  {case:16} {results[case][-1]['ms']:7.0f} ms",
                file=sys.stderr,
                flush=True,
            )
    summary = [summarise(case, rounds) for case, rounds in results.items()]
    head = ("case", "ms/128 users", "min", "users/s", "tokens/s", "fill", "GiB", "x reference")
    print("".join(f"{name:>14}" for name in head))
    for line in summary:
        ratio = f"{line['ratio']:.1f}" if line["ratio"] else "-"
        values = (line["ms"], line["min_ms"], line["users_per_second"], line["tokens_per_second"])
        print(f"{line['case']:>14}" + "".join(f"{v:14,.0f}" for v in values), end="")
        print(f"{line['fill']:14.1%}{line['peak_rss_gib']:14.2f}{ratio:>14}")
    if args.json:
        text = json.dumps(
            {"command": command_line(), "jax": jax.__version__, "cases": summary}, indent=2
        )
        Path(args.json).write_text(text + "\n")


def summarise(case: str, rounds: list[dict]) -> dict:
    """Median over the rounds, and the ratio to the reference."""
    numbers = {k: statistics.median(r[k] for r in rounds) for k in rounds[0] if k != "case"}
    numbers["min_ms"] = min(r["min_ms"] for r in rounds)
    reference = REFERENCE_MS[case.split("/")[0]]
    ratio = reference / numbers["ms"] if reference else None
    return {"case": case, **numbers, "ratio": ratio, "rounds_ms": [r["ms"] for r in rounds]}


if __name__ == "__main__":
    main()
