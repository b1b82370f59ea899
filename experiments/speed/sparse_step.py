"""Time and memory of a training step with row-wise tables or dense AdamW, by size of the table.

    python -m experiments.speed.sparse_step                        # 0.1, 1 and 10 million rows
    python -m experiments.speed.sparse_step --rows=695763  # the catalogue of Amazon Books alone
    # times alone, all sizes interleaved in one process
    python -m experiments.speed.sparse_step --interleaved
    python -m experiments.speed.sparse_step --table  # the same of the table's part of the step
    python -m experiments.speed.sparse_step --figure  # table and figure from the results
    export XLA_FLAGS=--xla_force_host_platform_device_count=8
    python -m experiments.speed.sparse_step --meshes

A step is that of configs/amazon.py:books (4 blocks of 4 heads, width 64, 512 negatives for each 32
tokens, loss.kind=group) on 128 users whose lengths are those of Amazon Books, items drawn by a
power law: the whole step from ids to updated parameters, batches ready on the device. Each case
runs in its own process, for its peak memory, which is that of making the first parameters;
temporaries are those of XLA's `memory_analysis`. --interleaved interleaves steps of all cases,
so that a slow spell of the machine meets all, and reports times alone; the smallest dense table is
the cost of the model without one. --table does that with the same batches and negatives but no
model: rows are looked up, their gradients (of a sum of squares) are made and the table is updated,
so that what the rules differ in is seen.

--meshes trains 50 small steps on every shape of mesh over 1, 2, 4 and 8 virtual devices, dense and
sparse, and prints the largest relative difference of a loss from one device.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import figures
from experiments.common.results import RESULTS, ROOT, arguments, command_line, in_own_process, keep
from experiments.common.started import retrieval_step, start
from experiments.speed.train_speed import USERS, generated_log
from gr_jax.config import (
    Config,
    DataConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    files,
)
from gr_jax.data.batches import epochs
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.loader import read_batches
from gr_jax.data.dataset import Catalogue, Dataset
from gr_jax.models.lookup import take_entries
from gr_jax.training import sharding, state
from gr_jax.training.retrieval.negatives import draw_negatives
from gr_jax.training.retrieval.step import RetrievalInputs, label_weights
from gr_jax.training.run import keep_freed_memory
from gr_jax.training.tables.rowwise import Optimizer
from gr_jax.training.tables.update import make_tables

RESULT = RESULTS / "sparse_step.json"
RULES = ("dense", "rowwise_adamw", "rowwise_adagrad")
BATCHES = 4  # different ones, used in a circle


def books_config(rule: str) -> Config:
    """The config of Books with its table under `rule`, one device."""
    books = files.load(str(ROOT / "configs/amazon.py:books"))
    loss = dataclasses.replace(books.loss, kind="group")
    return dataclasses.replace(
        books, loss=loss, optimizer=OptimizerConfig(table=rule), mesh=MeshConfig(data=1)
    )


def log_of(config: Config, items: int) -> Dataset:
    """A log with the lengths of Books and `items` items."""
    log = generated_log(config.data, "books", users=BATCHES * USERS)
    item = 1 + (log.events.item.astype(np.int64) - 1) * items // log.num_items
    events = dataclasses.replace(log.events, item=item.astype(np.int32))
    return Dataset(Catalogue(Path("."), {"items": items}), events)


def table_step(_: Any, optimizer: Optimizer, config: Config, items: int) -> Any:
    """Step down the sum of squares of all entries that a batch names, with its negatives."""
    tables = make_tables(optimizer, config.mesh.exchange)

    def loss_fn(params: dict, inputs: RetrievalInputs) -> tuple[jax.Array, dict]:
        table = params["embeddings"]["item_table"]
        named = cast(tuple, (inputs.item, inputs.label, inputs.negatives))
        loss = sum((jnp.square(take_entries(table, ids)).sum() for ids in named), jnp.zeros(()))
        return loss, {"loss": loss}

    def step(now: state.TrainState, batch: Batch, key: jax.Array) -> tuple[state.TrainState, dict]:
        key = jax.random.fold_in(key, now.step)
        label: Any = batch.label
        negatives = draw_negatives(
            key, label, label_weights(label), config=config.loss, num_items=items
        )
        inputs = RetrievalInputs(**vars(batch), negatives=negatives)

        view, inputs = tables.look_up(now, inputs)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(view.params, inputs)
        now = tables.apply(now, view, grads, key)
        return now, metrics

    return step


def measure(rule: str, rows: int, steps: int) -> dict:
    """Times and memory of one case in this process."""
    keep_freed_memory()
    config = books_config(rule)
    plan = epochs.retrieval_batches(log_of(config, rows - 1), config.data, batch_users=USERS)
    training, key = start(config, rows - 1), jax.random.key(1)
    batches = [training.on_device(plan.batch(i)) for i in range(BATCHES)]
    compiled = training.step.lower(training.state, batches[0], key).compile()
    memory, now, times, losses = compiled.memory_analysis(), training.state, [], []
    del training  # the step takes the state over
    for i in range(2 + steps):
        begin = time.perf_counter()
        now, metrics = compiled(now, batches[i % BATCHES], key)
        losses.append(float(metrics["loss"]))
        jax.block_until_ready(now)
        times.append(1000 * (time.perf_counter() - begin))
    return {
        "rule": rule,
        "rows": rows,
        "ms": statistics.median(times[2:]),
        "min_ms": min(times[2:]),
        "state_mib": memory.argument_size_in_bytes / 2**20,
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "tokens": int(sum(int((b.segment != 0).sum()) for b in batches)) / BATCHES,
        "last_loss": losses[-1],
    }


# Of --interleaved: what fits into 16 GiB together.
IN_TURN = (
    ("dense", 2_000),
    *((rule, rows) for rows in (100_000, 695_763, 1_000_000) for rule in RULES),
    ("rowwise_adagrad", 10_000_000),
)


def interleave(steps: int, *, table_alone: bool) -> None:
    """Time interleaved steps of all cases; keep medians, and ratios to the dense step before."""
    keep_freed_memory()
    key, runs = jax.random.key(1), []
    for rule, rows in sorted(
        IN_TURN, key=lambda case: -case[1]
    ):  # the largest first: making it takes most memory
        config = books_config(rule)
        plan = epochs.retrieval_batches(log_of(config, rows - 1), config.data, batch_users=USERS)
        training = start(config, rows - 1, make_step=table_step if table_alone else retrieval_step)
        batches = [training.on_device(plan.batch(i)) for i in range(BATCHES)]
        compiled = training.step.lower(training.state, batches[0], key).compile()
        runs.append(
            {
                "rule": rule,
                "rows": rows,
                "step": compiled,
                "state": training.state,
                "batches": batches,
                "ms": [],
            }
        )
        del training
        print(f"{rule} {rows:,} compiled", flush=True)
    for i in range(2 + steps):
        for run in runs:
            begin = time.perf_counter()
            run["state"], _ = jax.block_until_ready(
                run["step"](run["state"], run["batches"][i % BATCHES], key)
            )
            run["ms"].append(1000 * (time.perf_counter() - begin))
    times = {(run["rule"], run["rows"]): run["ms"][2:] for run in runs}
    cases = []
    for rule, rows in IN_TURN:
        case = {
            "rule": rule,
            "rows": rows,
            "ms": statistics.median(times[rule, rows]),
            "min_ms": min(times[rule, rows]),
        }
        if ("dense", rows) in times:
            pairs = zip(times["dense", rows], times[rule, rows], strict=True)
            case["times_faster"] = statistics.median(dense / ours for dense, ours in pairs)
        cases.append(case)
        print(case, flush=True)
    found: dict = json.loads(RESULT.read_text()) if RESULT.exists() else {"cases": []}
    part = "table_alone" if table_alone else "interleaved"
    found[part] = {"command": command_line(), "steps": steps, "cases": cases}
    keep(RESULT, found)


def compare(sizes: list[int], rounds: int, steps: int) -> None:
    """Every rule at every size, interleaved; adds to the results."""
    found: dict = json.loads(RESULT.read_text()) if RESULT.exists() else {"cases": []}
    command = command_line()
    for rows in sizes:
        runs: dict[str, list[dict]] = {rule: [] for rule in RULES}
        for number in range(rounds):
            for rule in RULES:
                flags = (f"--one={rule}", f"--rows={rows}", f"--steps={steps}")
                runs[rule].append(in_own_process(*flags))
                about = f"{rows:>11,} rows  round {number + 1}  {rule:16}"
                print(f"{about} {runs[rule][-1]['ms']:8.1f} ms", flush=True)
        for rule, results in runs.items():
            numbers = [name for name in results[0] if name not in ("rule", "rows")]
            case = {"rule": rule, "rows": rows} | {
                n: statistics.median(r[n] for r in results) for n in numbers
            }
            case |= {
                "min_ms": min(r["min_ms"] for r in results),
                "rounds_ms": [r["ms"] for r in results],
            }
            # Dense and sparse of one round are neighbours in time.
            pairs = zip(runs["dense"], results, strict=True)
            case |= {
                "times_faster": [a["ms"] / b["ms"] for a, b in pairs],
                "command": command,
                "jax": jax.__version__,
            }
            found["cases"] = [
                c for c in found["cases"] if (c["rule"], c["rows"]) != (rule, rows)
            ] + [case]
        found["cases"].sort(key=lambda c: (c["rows"], RULES.index(c["rule"])))
        keep(RESULT, found)


def show() -> None:
    """Table and figure of the results."""
    found = json.loads(RESULT.read_text())
    print("| rows | rule | ms/step | dense / this | state MiB | temporaries MiB | peak RSS MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for c in found["cases"]:
        ratio = statistics.median(c["times_faster"])
        print(
            f"| {c['rows']:,} | {c['rule']} | {c['ms']:.0f} | {ratio:.1f} | {c['state_mib']:,.0f}",
            end="",
        )
        print(f" | {c['temporary_mib']:,.0f} | {c['peak_rss_mib']:,.0f} |")
    print(
        "\n| rows | rule | ms/step, interleaved | least | dense / this |"
        "\n| --- | --- | --- | --- | --- |"
    )
    for c in found["interleaved"]["cases"]:
        ratio = f"{c['times_faster']:.1f}" if "times_faster" in c else "-"
        print(f"| {c['rows']:,} | {c['rule']} | {c['ms']:.0f} | {c['min_ms']:.0f} | {ratio} |")
    figure, axes = figures.pyplot().subplots(1, 3, figsize=(13, 3.6))
    panels = (
        (found["interleaved"]["cases"], "ms", "ms per step, interleaved"),
        (found["table_alone"]["cases"], "ms", "the table's part alone, ms"),
        (found["cases"], "temporary_mib", "temporaries, MiB"),
    )
    for axis, (cases, field, label) in zip(axes, panels, strict=True):
        for rule in RULES:
            of_rule = [c for c in cases if c["rule"] == rule]
            axis.loglog([c["rows"] for c in of_rule], [c[field] for c in of_rule], "o-", label=rule)
        axis.set_xlabel("rows of the table, 64 wide")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(RESULT.with_suffix(".png"), dpi=120)


def small_config(data: int, model: int, exchange: str, rule: str) -> Config:
    """A model that trains in milliseconds."""
    return Config(
        data=DataConfig(max_length=16, row_length=32),
        model=ModelConfig(width=16, num_heads=2, qk_width=8, v_width=8),
        loss=LossConfig(kind="group", negatives=16, group=8, chunk_tokens=64),
        train=TrainConfig(batch_users=24),
        optimizer=OptimizerConfig(table=rule),
        mesh=MeshConfig(data=data, model=model, exchange=exchange),
    )


def sweep_meshes(steps: int = 50, items: int = 300) -> None:
    """Losses of every mesh against those of one device."""
    log = log_of(books_config("dense"), items)

    @functools.cache
    def losses(*case: Any) -> np.ndarray:
        config = small_config(*case)
        # Eight rows a batch on every mesh, so that all see the same batches.
        plan = epochs.retrieval_batches(log, config.data, batch_users=24, shards=8)
        training, values = start(config, items), []
        step = sharding.on_mesh(training.mesh, training.step)
        for batch in read_batches(plan, 0, steps):
            training.state, metrics = step(
                training.state, training.on_device(batch), jax.random.key(1)
            )
            values.append(float(metrics["loss"]))
        return np.array(values)

    path = RESULT.with_name("sparse_meshes.json")
    command = command_line()
    found: dict = {"command": command, "steps": steps, "jax": jax.__version__, "cases": []}
    found = (
        json.loads(path.read_text()) if path.exists() else found
    )  # goes on where an interrupted sweep stopped
    done = {(case["rule"], case["mesh"], case["exchange"]) for case in found["cases"]}
    for rule, devices, model in itertools.product(RULES, (2, 4, 8), (1, 2, 4, 8)):
        for exchange in ("gather",) if rule == "dense" else ("gather", "all_to_all"):
            mesh = f"{devices // model} x {model}"
            if model > devices or (rule, mesh, exchange) in done:
                continue
            one, many = (
                losses(1, 1, "gather", rule),
                losses(devices // model, model, exchange, rule),
            )
            worst = float(np.abs(many / one - 1).max())
            found["cases"].append(
                {"rule": rule, "mesh": mesh, "exchange": exchange, "worst": worst}
            )
            keep(path, found)
            print(
                f"{rule:16} {mesh} {exchange:10} largest relative difference {worst:.1e}",
                flush=True,
            )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", default="100000,1000000,10000000", help="sizes of the table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps in each round")
    parser.add_argument("--figure", action="store_true", help="only draw")
    parser.add_argument("--interleaved", action="store_true", help="only times, in one process")
    parser.add_argument(
        "--table", action="store_true", help="only times of the table's part, in one process"
    )
    parser.add_argument("--meshes", action="store_true", help="only compare losses on meshes")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, int(args.rows), args.steps)))
    elif args.meshes:
        sweep_meshes()
    elif args.interleaved or args.table:
        interleave(args.steps, table_alone=args.table)
    else:
        if not args.figure:
            compare([int(rows) for rows in args.rows.split(",")], args.rounds, args.steps)
        show()


if __name__ == "__main__":
    main()
