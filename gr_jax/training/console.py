"""The console lines of a training, and text tables."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from gr_jax.config import ModelConfig
from gr_jax.data.batches.epochs import TrainBatches, TrainPlan
from gr_jax.data.log.preparation import told
from gr_jax.models.flops import block_flops
from gr_jax.training import processes
from gr_jax.training.objective import Objective, last_step
from gr_jax.training.state import TrainState
from gr_jax.training.tables.admission import Revision

LARGE = 0.1  # share of targets that are left out above which the line names the remedy


def say(text: str) -> None:
    """Print a line at once; of several processes the first prints."""
    if processes.is_first():
        print(text, flush=True)


def table(rows: list[tuple[str, ...]], *, left: tuple[int, ...] = (0,)) -> str:
    """Text table with the first row as heading; `left` columns are left-aligned, others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def describe(objective: Objective, state: TrainState) -> str:
    """Lines on the data, the model, the batches, the devices and the steps of a run."""
    run, model = objective.run, objective.run.config.model
    data = run.dataset
    parameters = sum(a.size for a in jax.tree.leaves(state.params))
    mesh = " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    if jax.process_count() > 1:
        mesh += f", {jax.process_count()} processes"
    step, last = int(state.step), last_step(objective)
    resuming = ": resuming" if 0 < step < last else ""

    return "\n".join(
        [
            f"data    {data.num_users:,} users, {data.num_items:,} items,"
            f" {data.num_events:,} events",
            *(f"        {line}" for line in told(data.meta)),
            f"model   {model.kind}, {model.num_blocks} blocks, {parameters:,} parameters",
            *objective.about,
            *shards_lines(objective.plan, model),
            f"devices {run.mesh.size} {jax.devices()[0].device_kind} ({mesh})",
            f"steps   {objective.plan.first_step(1)} in the first epoch,"
            f" {step} of {last} done{resuming}",
        ]
    )


def shards_lines(plan: TrainPlan, model: ModelConfig) -> tuple[str, ...]:
    """How even the work of data shards is; nothing for one shard or a stream.

    Work as of `block_flops`: padding costs as much as a token in the linear layers, and nothing in
    attention.
    """
    if not isinstance(plan, TrainBatches) or plan.shards == 1:
        return ()
    per_token, per_pair = block_flops(model)
    before, after = plan.imbalance(token_cost=per_token, pair_cost=per_pair)
    return (
        f"shards  {plan.shards}, the busiest with {after:.3f} of the mean work"
        f" ({before:.3f} before balancing)",
    )


def train_line(step: int, epoch: float, values: dict[str, float]) -> str:
    """Console line of the loss and the speed."""
    line = f"step {step:>6}  epoch {epoch:6.2f}  loss {values['loss']:.4f}"
    if "step_ms" in values:
        line += f"  {values['step_ms']:.0f} ms/step  {values['users_per_second']:,.0f} users/s"
        line += f"  {values['tokens_per_second']:,.0f} tokens/s  mfu {values['mfu']:.1%}"
    return line


def vocabulary_line(step: int, epoch: float, revision: Revision) -> str:
    """Console line of the items that got and lost an entry of the table."""
    changes = f"{revision.admitted} admitted, {revision.evicted} evicted, {revision.waiting} wait"
    return f"step {step:>6}  epoch {epoch:6.2f}  rows of items: {changes}"


def valid_line(
    step: int, epoch: float, result: dict[str, float], objective: Objective, *, is_best: bool
) -> str:
    """Console line of a validation: its headline, or what else is defined."""
    names = [name for name in objective.headline if name in result]
    names = names or [name for name in objective.shown if name in result]
    shown = "  ".join(f"{name} {result[name]:.4f}" for name in names) or "no labels"
    return f"step {step:>6}  epoch {epoch:6.2f}  valid  {shown}" + ("  best" if is_best else "")


def repeats_line(result: dict[str, float], split: str) -> str:
    """Console line of the share of targets that no served list can have; "" if there are none."""
    share = result.get("repeats", 0.0)
    if not share:
        return ""
    what = "are items that the user had before: no list has them, so they count as misses"
    line = f"repeats {share:.1%} of the {split} targets {what}"
    if share > LARGE:
        line += "; --config.evaluate.exclude=none ranks and recommends such items"
    return line


def final_table(
    results: dict[str, dict[str, float]],
    baseline: tuple[str, dict[str, float]],
    shown: Sequence[str],
) -> str:
    """Table of the metrics of both splits, and of the baseline on the test split."""
    columns = (results["valid"], results["test"], baseline[1])
    rows = [
        (name, *(f"{column[name]:.4f}" if name in column else "" for column in columns))
        for name in shown
        if any(name in column for column in columns)
    ]
    return table([("metric", "valid", "test", f"{baseline[0]} (test)"), *rows])
