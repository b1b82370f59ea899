"""Stochastic Length: tokens removed, time saved, and cost in quality.

    # A: closed form, measured, paper; seconds
    python -m experiments.quality.stochastic_length sparsity
    # B: s per epoch by alpha, interleaved; minutes
    python -m experiments.quality.stochastic_length speed --data=synthetic
    # C: training by alpha and selection; hours
    python -m experiments.quality.stochastic_length train --data=synthetic
    python -m experiments.quality.stochastic_length train --data=ml-1m --path=DIR [--ranking]

`sparsity` draws cuts of histories of exactly N events with
`gr_jax.data.batches.stochastic_length.choose` (selection greedy: which events are kept does not
change how many). Table 3 of the paper (Zhai et al. 2024) is of real histories, many of them shorter
than N: its sparsity is higher where N is large.

`speed` and `train` use the generated log of clicks with as many events as its year holds, half the
users above 220 and N = 256 (ranking, one token an event, NE), or MovieLens-1M with N = 1024
(retrieval, HR@10 and NDCG@10; with --ranking NE of its actions). A training run is cut, its
evaluation is not. Runs lie in runs/stochastic_length/, resume where they stopped and are not
repeated when they are done; alpha = 2 is one run, as nothing is selected. `saving` is the share of
alpha = 2 that is not computed (tokens) or not waited for (seconds); their quotient says how much of
the tokens saved becomes time. In `speed` a round takes one step of every alpha, so that a
slow spell of the machine meets all; the medians count.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common.results import RESULTS, ROOT, arguments, command_line, keep, metrics_lines
from gr_jax.config import Config, SyntheticConfig, files
from gr_jax.config.overrides import override_all
from gr_jax.data.batches.stochastic_length import Rule, choose, keep_full_probability, threshold
from gr_jax.data.log.preparation import prepare
from gr_jax.training import sharding
from gr_jax.training.objective import objective_of
from gr_jax.training.run import open_run
from gr_jax.training.train import train as train_run

ALPHAS = (1.6, 1.7, 1.8, 1.9, 2.0)
SELECTIONS = ("greedy", "random", "weighted")
LENGTHS = (1024, 2048, 4096, 8192)
# Sparsity in percent of Zhai et al. 2024, table 3 (histories of 30 days), by alpha and N.
PAPER = {
    1.6: (71.5, 76.1, 80.5, 84.4),
    1.7: (56.1, 63.6, 69.8, 75.6),
    1.8: (40.2, 45.3, 54.1, 66.4),
    1.9: (17.2, 21.0, 36.3, 64.1),
    2.0: (3.1, 6.6, 29.1, 64.1),
}


def closed_form(max_length: int, alpha: float) -> float:
    """Expected share of tokens removed if every history has N events."""
    p = float(keep_full_probability(np.array([max_length]), max_length, alpha)[0])
    return 1 - (p * max_length + (1 - p) * threshold(max_length, alpha)) / max_length


def measured(
    max_length: int, alpha: float, *, users: int, epochs: int, selection: str = "greedy"
) -> float:
    """Share of tokens that `choose` removes from histories of N events each."""
    begin, length = np.arange(users) * max_length, np.full(users, max_length)
    timestamp = np.cumsum(np.random.default_rng(0).integers(1, 10_000, users * max_length))
    kept = 0
    for epoch in range(epochs):
        event, new_length = choose(
            begin,
            length,
            timestamp,
            np.arange(users),
            rule=Rule(max_length, alpha, selection),  # type: ignore[arg-type]
            seed=0,
            epoch=epoch,
        )
        assert len(event) == new_length.sum()
        kept += len(event)
    return 1 - kept / (epochs * users * max_length)


def sparsity(args: argparse.Namespace) -> None:
    """Part A."""
    rows = []
    for alpha in ALPHAS:
        for n, paper in zip(LENGTHS, PAPER[alpha], strict=True):
            drawn = 100 * measured(n, alpha, users=args.users, epochs=args.epochs)
            row = {"alpha": alpha, "N": n, "threshold": threshold(n, alpha)}
            row |= {
                "closed_form": round(100 * closed_form(n, alpha), 2),
                "measured": round(drawn, 2),
            }
            rows.append(row | {"paper_table_3": paper})
    write(
        "stochastic_length_sparsity.json",
        {"users": args.users, "epochs": args.epochs, "percent_removed": rows},
    )
    print("Sparsity in percent: closed form / measured / paper (table 3, real histories)\n")
    print("| alpha | " + " | ".join(f"N={n}" for n in LENGTHS) + " |")
    print("| --- |" + " --- |" * len(LENGTHS))
    for alpha in ALPHAS:
        cells = [
            f"{r['closed_form']} / {r['measured']} / {r['paper_table_3']}"
            for r in rows
            if r["alpha"] == alpha
        ]
        print(f"| {alpha} | " + " | ".join(cells) + " |")
    worst = max(abs(r["closed_form"] - r["measured"]) for r in rows)
    print(f"\nlargest difference of measured and closed form: {worst:.2f} points")


def base_config(args: argparse.Namespace) -> Config:
    """The run without cuts, of long histories."""
    if args.data == "synthetic":
        config = files.load(str(ROOT / "configs/synthetic.py:ranking"))
        users, mean_length = (200, 100.0) if args.quick else (1000, 400.0)
        synthetic = SyntheticConfig(
            num_users=users, num_items=100, mean_length=mean_length, actions=True
        )
        data = dataclasses.replace(config.data, synthetic=synthetic)
        config = dataclasses.replace(
            config, ranking=dataclasses.replace(config.ranking, tokens="sum")
        )
    else:
        config = files.load(str(ROOT / f"configs/ml_1m.py:{'ranking' if args.ranking else 'base'}"))
        data = dataclasses.replace(config.data, path=args.path)
    max_length = 128 if args.quick else 256 if args.data == "synthetic" else 1024  # N
    per_event = 2 if config.ranking.tasks and config.ranking.tokens != "sum" else 1
    row_length = per_event * max_length + (128 if data.user_features else 0)
    if args.data == "synthetic":
        # Most users have nearly N events: cut, they would leave a row of N tokens padded.
        row_length *= 4
    data = dataclasses.replace(data, max_length=max_length, row_length=row_length)
    epochs = 1 if args.quick else args.epochs or config.train.epochs
    train = dataclasses.replace(
        config.train, epochs=epochs, patience=0 if args.epochs else config.train.patience
    )
    config = dataclasses.replace(config, data=data, train=train, seed=args.seed)
    return override_all(config, dict(change.split("=", 1) for change in args.change))


def with_cuts(config: Config, alpha: float, selection: str) -> Config:
    """The same run under Stochastic Length."""
    data = dataclasses.replace(
        config.data, stochastic_length_alpha=alpha, stochastic_length_selection=selection
    )
    return dataclasses.replace(config, data=data)


def tokens_per_epoch(config: Config, workdir: Path, epochs: int) -> dict[str, float]:
    """Batches, real tokens and computed tokens (with padding), mean over the epochs of a run."""
    plan: Any = objective_of(open_run(config, workdir, prepare(config.data))).plan
    steps = [plan.steps(epoch) for epoch in range(epochs)]
    real = [int(plan.count(plan.epoch(epoch).spans).sum()) for epoch in range(epochs)]
    batch_tokens = plan.batch_rows * plan.row_length
    return {
        "steps": statistics.mean(steps),
        "tokens_computed": statistics.mean(steps) * batch_tokens,
        "tokens_real": statistics.mean(real),
    }


def speed(args: argparse.Namespace) -> None:
    """Part B: seconds of training steps per epoch, alphas interleaved."""
    config, workdir = base_config(args), ROOT / "runs/stochastic_length/speed"
    timed: dict[float, dict] = {}
    for alpha in ALPHAS:
        cut = with_cuts(config, alpha, args.selection)
        run = open_run(cut, workdir, prepare(cut.data))
        objective = objective_of(run)
        state, shardings = run.fresh_state()
        out = shardings, sharding.replicated(run.mesh)
        step = sharding.on_mesh(
            run.mesh, jax.jit(objective.make_step(), donate_argnums=0, out_shardings=out)
        )
        plan: Any = objective.plan
        timed[alpha] = {"run": run, "plan": plan, "state": state, "step": step, "ms": []}
    for number in range(args.rounds + 1):  # the first compiles
        for one in timed.values():
            batch = sharding.put(
                one["plan"].batch(number), sharding.batch_sharding(one["run"].mesh)
            )
            start = time.perf_counter()
            one["state"], values = one["step"](one["state"], batch, jax.random.key(0))
            jax.block_until_ready(values)
            one["ms"] += [1000 * (time.perf_counter() - start)] * (number > 0)
    rows = []
    for alpha, one in timed.items():
        plan, ms = one["plan"], statistics.median(one["ms"])
        tokens = plan.steps(0) * plan.batch_rows * plan.row_length
        row = {
            "alpha": alpha,
            "steps": plan.steps(0),
            "tokens_of_a_batch": plan.batch_rows * plan.row_length,
        }
        rows.append(
            row | {"step_ms": ms, "tokens_computed": tokens, "seconds": plan.steps(0) * ms / 1000}
        )
    rows = savings(rows)
    print(
        table(
            rows,
            (
                "alpha",
                "steps",
                "tokens_computed",
                "step_ms",
                "seconds",
                "token_saving",
                "time_of_saving",
            ),
        )
    )
    write(
        f"stochastic_length_speed_{name_of(args)}.json", settings(args, config) | {"epochs": rows}
    )


def savings(rows: list[dict]) -> list[dict]:
    """Rows with `token_saving`, `time_saving` and their quotient, against the row of alpha = 2."""
    whole = next((row for row in rows if row["alpha"] == 2), None)
    if whole is None:
        return rows
    done = []
    for row in rows:
        tokens = 1 - row["tokens_computed"] / whole["tokens_computed"]
        seconds = 1 - row["seconds"] / whole["seconds"]
        quotient = seconds / tokens if row is not whole and tokens > 0 else None
        done.append(
            row | {"token_saving": tokens, "time_saving": seconds, "time_of_saving": quotient}
        )
    return done


def train(args: argparse.Namespace) -> None:
    """Part C: one run for each alpha and selection; the JSON is written after each."""
    config = base_config(args)
    variants = [(alpha, selection) for alpha in ALPHAS if alpha < 2 for selection in SELECTIONS]
    variants = [(2.0, "weighted"), *variants]
    if args.quick:
        variants = [(2.0, "weighted"), (1.6, "greedy"), (1.6, "weighted")]
    rows: list[dict] = []
    for alpha, selection in variants:
        name = "whole" if alpha == 2 else f"{alpha}-{selection}"
        workdir = ROOT / f"runs/stochastic_length/{name_of(args)}-seed{args.seed}/{name}"
        one = with_cuts(config, alpha, selection)
        if not (workdir / "result.json").exists():
            code = train_run(one, workdir)
            if code:
                raise SystemExit(code)  # interrupted; the same command goes on
        rows.append(outcome(one, workdir, alpha, selection))
        metrics = [name for name in ("ne", "hr@10", "ndcg@10") if name in rows[0]]
        rows = savings(rows)
        print(
            table(
                rows, ("alpha", "selection", "tokens_computed", "seconds", "token_saving", *metrics)
            ),
            flush=True,
        )
        write(
            f"stochastic_length_{name_of(args)}_seed{args.seed}.json",
            settings(args, config) | {"runs": rows},
        )


def outcome(config: Config, workdir: Path, alpha: float, selection: str) -> dict:
    """Tokens and seconds of training per epoch, and test metrics, of a finished run."""
    result = json.loads((workdir / "result.json").read_text())
    lines = metrics_lines(workdir)
    step_ms = statistics.median([line["step_ms"] for line in lines if "step_ms" in line])
    epochs = max(1, max(line["epoch"] for line in lines if line["split"] == "valid"))
    tokens = tokens_per_epoch(config, workdir, epochs)
    row = {
        "alpha": alpha,
        "selection": "-" if alpha == 2 else selection,
        "epochs": epochs,
        "step_ms": step_ms,
    }
    row |= tokens | {
        "seconds": tokens["steps"] * step_ms / 1000,
        "wall_seconds": result["wall_seconds"],
    }
    return row | {"best_step": result["best_step"], **result["test"]}


def table(rows: list[dict], columns: tuple[str, ...]) -> str:
    """A markdown table of these columns."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return "-" if value is None else str(value)

    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    return "\n".join(
        lines + ["| " + " | ".join(cell(row.get(c)) for c in columns) + " |" for row in rows]
    )


def name_of(args: argparse.Namespace) -> str:
    """synthetic, ml-1m or ml-1m-ranking, with -quick."""
    return (
        args.data + "-ranking" * (args.ranking and args.data != "synthetic") + "-quick" * args.quick
    )


def settings(args: argparse.Namespace, config: Config) -> dict:
    """Seed and config of the numbers."""
    parts = {
        name: files.to_dict(config)[name] for name in ("data", "model", "ranking", "loss", "train")
    }
    del parts["data"]["path"]
    return {"seed": args.seed, "config": parts}


def write(name: str, content: dict) -> None:
    """A JSON file in results, with the command, machine and versions."""
    made = {
        "command": command_line(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }
    made["machine"] = (
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, load {os.getloadavg()[1]:.1f}"
    )
    folder = ROOT / "runs/stochastic_length" if "-quick" in name else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    keep(folder / name, made | content)


def main() -> None:
    parser = arguments(__doc__)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("sparsity", help="tokens removed: closed form, measured, paper")
    part.add_argument("--users", type=int, default=1000, help="histories of N events")
    part.add_argument("--epochs", type=int, default=20)
    part.set_defaults(call=sparsity)
    for name, call in (("speed", speed), ("train", train)):
        part = parts.add_parser(name)
        part.add_argument("--data", choices=("synthetic", "ml-1m"), default="synthetic")
        part.add_argument(
            "--path", default="", help="folder of MovieLens-1M; downloaded when not given"
        )
        part.add_argument(
            "--ranking", action="store_true", help="MovieLens: actions instead of retrieval"
        )
        part.add_argument("--quick", action="store_true", help="tiny: to see that it runs")
        part.add_argument("--seed", type=int, default=0)
        part.add_argument("--epochs", type=int, default=0, help="0 = as the config says")
        part.add_argument(
            "--change", nargs="*", default=[], help="of the config, such as model.num_blocks=1"
        )
        part.set_defaults(call=call)
        if name == "speed":
            part.add_argument("--rounds", type=int, default=7)
            part.add_argument("--selection", choices=SELECTIONS, default="weighted")
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
