"""The console lines of a training, and text tables."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from gr_jax.config import ModelConfig
from gr_jax.data.batches.epochs import TrainBatches
from gr_jax.data.batches.impressions import ImpressionBatches
from gr_jax.data.batches.packing import padded
from gr_jax.data.batches.streaming import StreamBatches
from gr_jax.data.log.preparation import told
from gr_jax.models.flops import block_flops
from gr_jax.training import processes
from gr_jax.training.checkpoint import Progress
from gr_jax.training.objective import Objective, is_out_of_patience, is_over, last_step
from gr_jax.training.state import TrainState
from gr_jax.training.tables.admission import Revision

FEW = 0.01  # share of targets below which nothing is told
LARGE = 0.1  # share of targets that are left out above which the line names the remedy


_silent = contextvars.ContextVar("silent", default=False)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Let `say` print nothing inside the block, in this thread."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)


def say(text: str) -> None:
    """Print a line at once; of several processes the first prints."""
    if processes.is_first() and not _silent.get():
        print(text, flush=True)


def say_late(what: str, seconds: float = 2.0) -> Callable[[str], None]:
    """`say` for the stages of `what`: those that begin when it has gone on for some time."""
    began = time.monotonic()

    def tell(stage: str) -> None:
        if time.monotonic() - began >= seconds:
            say(f"{what}: {stage} ...")

    return tell


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


def describe(objective: Objective, state: TrainState, progress: Progress) -> str:
    """Lines on the data, the model, the batches, the devices and the steps of a run."""
    run, model = objective.run, objective.run.config.model
    data = run.dataset
    parameters = sum(a.size for a in jax.tree.leaves(state.params))
    mesh = " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    if jax.process_count() > 1:
        mesh += f", {jax.process_count()} processes"
    step, last = int(state.step), last_step(objective)
    resuming = ": resuming" if step and not is_over(objective, step, progress) else ""

    return "\n".join(
        [
            f"data    {data.num_users:,} users, {data.num_items:,} items,"
            f" {data.num_events:,} events",
            *(f"        {line}" for line in told(data.meta)),
            f"model   {model.kind}, {model.num_blocks} blocks, {parameters:,} parameters",
            *objective.about,
            *shards_lines(objective.plan, model, run.mesh.shape["data"]),
            f"devices {run.mesh.size} {jax.devices()[0].device_kind} ({mesh})",
            f"steps   {objective.plan.first_step(1)} in the first epoch,"
            f" {step} of {last} done{resuming}",
        ]
    )


def patience_line(objective: Objective, step: int, progress: Progress) -> str:
    """Console line of a run that patience ended before its last step; "" for others."""
    last = last_step(objective)
    if step >= last or not is_out_of_patience(objective, progress):
        return ""
    return (
        f"patience ended the run after step {step} of {last}: {progress.stale} validations without"
        " a better one; to go on raise --config.train.patience, or set it to 0"
    )


def shards_lines(
    plan: TrainBatches | StreamBatches | ImpressionBatches, model: ModelConfig, shards: int
) -> tuple[str, ...]:
    """What the empty rows of data shards cost, and how even their work is; nothing for one shard.

    Work as of `block_flops`: padding costs as much as a token in the linear layers, and nothing in
    attention.
    """
    if shards == 1:
        return ()
    real = plan.batch_size if isinstance(plan, ImpressionBatches) else plan.batch_rows
    empty = padded(real, shards) - real
    line = f"shards  {shards}; empty rows added to a batch: {empty} of {real + empty}"
    line += f" ({empty / real:.1%} more is computed than on one device)" if empty else ""
    if isinstance(plan, TrainBatches):
        per_token, per_pair = block_flops(model)
        before, after = plan.imbalance(token_cost=per_token, pair_cost=per_pair)
        line += f"; the busiest has {after:.3f} of the mean work ({before:.3f} before balancing)"
    return (line,)


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


def cold_line(result: Mapping[str, float], split: str) -> str:
    """Console line of the share of targets that no training event has; "" if there are few."""
    share = result.get("cold", 0.0)
    if share < FEW:
        return ""
    what = "are items that nobody had in training; only a model with data.item_features knows them"
    return f"cold    {share:.1%} of the {split} targets {what}"


def metrics_table(columns: Mapping[str, Mapping[str, float]], shown: Sequence[str]) -> str:
    """Table of the metrics of several columns, such as splits and baselines, by their names."""
    rows = [
        (name, *(with_error(column, name) for column in columns.values()))
        for name in shown
        if any(name in column for column in columns.values())
    ]
    return table([("metric", *columns), *rows])


def on_test(baselines: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """Baselines as columns of a table that has other splits too."""
    return {f"{name} (test)": values for name, values in baselines.items()}


def with_error(metrics: Mapping[str, float], name: str) -> str:
    """A metric as text, with its standard error where that is known; "" where it is not there."""
    if name not in metrics:
        return ""
    error = f" ±{metrics[f'{name}/se']:.4f}" if f"{name}/se" in metrics else ""
    return f"{metrics[name]:.4f}{error}"


def not_beaten_line(test: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> str:
    """Console line of a run that does not beat its best baseline; "" for others.

    Retrieval has to be above it by a standard error of NDCG@10, ranking to have a lower NE.
    """
    metric, sign = ("ndcg@10", 1) if "ndcg@10" in test else ("ne", -1)
    having = {name: values[metric] for name, values in baselines.items() if metric in values}
    if metric not in test or not having:
        return ""
    name = max(having, key=lambda name: sign * having[name])
    ours, error = test[metric], test.get(f"{metric}/se", 0.0)
    if sign * (ours - having[name]) > error:
        return ""
    return (
        f"the model does not beat {name}: {metric} {with_error(test, metric)} against"
        f" {having[name]:.4f}; what to try is in docs/own_log.md"
    )
