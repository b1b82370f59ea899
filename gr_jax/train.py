"""Trains a recommender: prepares the data if needed, trains, validates, saves, tests the best checkpoint at the end.

    python -m gr_jax.train --config=configs/ml_1m.py --config.data.path=ml-1m

Running it again with the same workdir resumes. Ctrl-C and SIGTERM save and stop.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import gr_jax
from gr_jax import cli
from gr_jax.config import Config
from gr_jax.data import pipeline
from gr_jax.data.popularity import popularity_ranks
from gr_jax.models.embeddings import table_rows
from gr_jax.training import metrics, reporting, sharding, state
from gr_jax.training.checkpoint import BEST_METRIC, Checkpoints, Progress
from gr_jax.training.evaluation import rows_of
from gr_jax.training.interruption import Interruption
from gr_jax.training.reporting import say
from gr_jax.training.run import Run, claim_workdir, open_run
from gr_jax.training.speed import SpeedMeter, train_flops
from gr_jax.training.step import make_train_step

SHOWN = ("hr@10", "hr@50", "hr@200", "ndcg@10", "ndcg@200", "mrr", "log_perplexity")  # of the final table


class Diverged(ValueError):
    """A loss or parameter is not finite; nothing was saved since the last checkpoint."""

    def __init__(self, step: int, what: str):
        remedy = "the last checkpoint is from before it; try a lower config.optimizer.learning_rate"
        super().__init__(f"step {step}: {what}; {remedy}")


def main(argv: list[str]) -> int:
    """Trains what the command line asks for; 0 when the run is complete, 128 + signal when it was interrupted."""
    flags = {"workdir": (str, "", "folder of the run; default runs/<config>[-<variant>]")}
    args = cli.parse(argv, doc=__doc__ or "", flags=flags, config="required")
    return train(args.config, Path(args.workdir or default_workdir(args.config_spec)))


def default_workdir(spec: str) -> str:
    """runs/ml_1m-large for configs/ml_1m.py:large."""
    file, _, variant = spec.partition(":")
    return f"runs/{Path(file).stem}" + (f"-{variant}" if variant else "")


def train(config: Config, workdir: Path) -> int:
    """Runs or resumes the training of `config` in `workdir`; returns the exit code."""
    started = time.monotonic()
    claim_workdir(config, workdir)
    with Interruption() as interruption:
        run = open_run(config, workdir)
        rows = pipeline.train_rows(
            run.dataset,
            config.data,
            batch_users=config.train.batch_users,
            row_multiple=run.row_multiple,
            seed=config.seed,
        )
        train_state, shardings = run.fresh_state()
        checkpoints = Checkpoints(workdir / "checkpoints")
        train_state, progress = checkpoints.restore(state.abstract(train_state)) or (train_state, Progress())
        say(describe(run, rows, train_state))
        clock = Clock(started, progress.wall_seconds)
        log = reporting.MetricsLog(workdir, resume_step=int(train_state.step))
        try:
            train_state, progress = loop(
                run, rows, train_state, shardings, progress, checkpoints, log, interruption, clock
            )
            if interruption.signal and not is_over(config, rows, int(train_state.step), progress):
                say(f"interrupted: step {int(train_state.step)} is saved in {workdir}; the same command goes on")
                return 128 + interruption.signal
            finish(run, rows, train_state, progress, checkpoints, log, clock)
        finally:
            checkpoints.close()
            log.close()
    return 0


@dataclasses.dataclass(frozen=True)
class Clock:
    """Wall time of a run over all its sessions."""

    started: float  # time.monotonic() of this session
    before: float  # seconds of earlier sessions

    def seconds(self) -> float:
        """Seconds so far."""
        return self.before + time.monotonic() - self.started


def last_step(config: Config, rows: pipeline.TrainRows) -> int:
    """Steps of the whole run, unless it stops early."""
    return config.train.steps or config.train.epochs * rows.steps_per_epoch


def is_over(config: Config, rows: pipeline.TrainRows, step: int, progress: Progress) -> bool:
    """Whether no step is left to take: all are done, or validation has not improved for `patience` validations."""
    out_of_patience = 0 < config.train.patience <= progress.stale
    return step >= last_step(config, rows) or out_of_patience


def loop(
    run: Run,
    rows: pipeline.TrainRows,
    train_state: state.TrainState,
    shardings: state.TrainState,
    progress: Progress,
    checkpoints: Checkpoints,
    log: reporting.MetricsLog,
    interruption: Interruption,
    clock: Clock,
) -> tuple[state.TrainState, Progress]:
    """Steps until the run is over or a signal arrives; the state returned is saved."""
    config, step = run.config, int(train_state.step)
    train_step = make_train_step(
        run.graphdef,
        run.optimizer,
        config,
        num_items=run.dataset.num_items,
        item_log_q=item_log_q(run, rows) if config.loss.log_q else None,
    )
    out_shardings = shardings, sharding.replicated(run.mesh)
    train_step = sharding.on_mesh(run.mesh, jax.jit(train_step, donate_argnums=0, out_shardings=out_shardings))
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    valid_rows = rows_of(run.dataset, config, "valid", row_multiple=run.row_multiple)
    meter = make_meter(run, rows)
    pending: list[tuple[int, dict]] = []  # metrics still on the device, with their step

    if is_over(config, rows, step, progress):
        return train_state, progress
    for batch in pipeline.train_batches(rows, step, last_step(config, rows)):
        batch = sharding.put(batch, sharding.batch_sharding(run.mesh))
        train_state, values = train_step(train_state, batch, key)
        step += 1
        pending.append((step, values))
        meter.add(fetch(pending, leave=1))  # one step late: the device never waits for the host
        epochs_done, step_of_epoch = divmod(step, rows.steps_per_epoch)
        ends_epoch = step_of_epoch == 0 and epochs_done % config.train.validate_every == 0
        validates = ends_epoch or step == last_step(config, rows)
        if step % config.train.log_every == 0 and meter.has_news:
            values = meter.report()
            log.write(step, epochs_done, "train", values)
            say(train_line(step, step / rows.steps_per_epoch, values))
        if validates or interruption.signal or step % config.train.checkpoint_every == 0:
            meter.add(fetch(pending, leave=0))
            meter.pause()
            check_finite(step, train_state.params)
            result = run.evaluate_rows(train_state.params, valid_rows) if validates else None
            if result is not None:
                progress = progress.after_validation(step, result[BEST_METRIC])
                log.write(step, epochs_done, "valid", result)
                say(valid_line(step, step / rows.steps_per_epoch, result, is_best=progress.best_step == step))
            progress = dataclasses.replace(progress, wall_seconds=clock.seconds())
            checkpoints.save(step, train_state, progress, result)
            meter.resume()
            if interruption.signal or is_over(config, rows, step, progress):
                break
    return train_state, progress


def fetch(pending: list[tuple[int, dict]], *, leave: int) -> list[float]:
    """Takes all but the newest `leave` entries off `pending` and returns their losses.

    Raises:
      Diverged: a loss is not finite.
    """
    losses = []
    while len(pending) > leave:
        step, values = pending.pop(0)
        losses.append(float(values["loss"]))
        if not math.isfinite(losses[-1]):
            raise Diverged(step, f"loss={losses[-1]}")
    return losses


def check_finite(step: int, params: dict) -> None:
    """Raises `Diverged` if a parameter is not finite; the gradients of a finite loss need not be."""
    finite = jax.tree.map(lambda array: jnp.isfinite(array).all(), params)
    for path, ok in jax.tree_util.tree_leaves_with_path(finite):
        if not ok:
            raise Diverged(step, f"{sharding.path_name(path)} is not finite")


def item_log_q(run: Run, rows: pipeline.TrainRows) -> Float[Array, " rows"]:
    """Log of each item's share of the training labels, the probability that in-batch sampling draws it."""
    spans, dataset = rows.spans, run.dataset
    labels = dataset.item[pipeline.packing.token_index(spans.begin + 1, spans.length)]
    counts = np.bincount(labels, minlength=table_rows(dataset.num_items)).astype(np.float32)
    return jnp.log(np.maximum(counts, 1) / counts.sum())


def make_meter(run: Run, rows: pipeline.TrainRows) -> SpeedMeter:
    """A meter for batches of these rows, by their mean over an epoch."""
    lengths, steps = rows.spans.length, rows.steps_per_epoch
    return SpeedMeter(
        users_per_step=len(lengths) / steps,
        tokens_per_step=float(lengths.sum()) / steps,
        flops_per_step=train_flops(run.config, lengths, num_items=run.dataset.num_items) / steps,
    )


def finish(
    run: Run,
    rows: pipeline.TrainRows,
    train_state: state.TrainState,
    progress: Progress,
    checkpoints: Checkpoints,
    log: reporting.MetricsLog,
    clock: Clock,
) -> None:
    """Evaluates the checkpoint with the best validation on both splits, writes result.json and prints the table."""
    if progress.best_step:
        best = checkpoints.restore(state.abstract(train_state), step=progress.best_step)
        assert best is not None
        train_state = best[0]
    else:  # a run cut short by a lower train.steps, before its first validation
        progress = dataclasses.replace(progress, best_step=int(train_state.step))
    results = {split: run.evaluate(train_state.params, split) for split in ("valid", "test")}
    result = run.workdir / "result.json"
    if not result.exists() or json.loads(result.read_text())["best_step"] != progress.best_step:
        log.write(progress.best_step, progress.best_step // rows.steps_per_epoch, "test", results["test"])
    write_result(run, results, progress, clock.seconds())
    dataset = run.dataset
    ranks = popularity_ranks(dataset.offsets, dataset.item, dataset.num_items, held_out=1)
    say(final_table(results, metrics.rank_means(ranks)))
    say(f"best checkpoint: step {progress.best_step} in {run.workdir / 'checkpoints'}; {clock.seconds():.0f} s in all")
    say(f"next: python -m gr_jax.evaluate --workdir={run.workdir}, or another --config of configs/")


def write_result(run: Run, results: dict, progress: Progress, wall_seconds: float) -> None:
    """result.json: the metrics of the best checkpoint and what they came from."""
    names = ("num_users", "num_items", "num_events")
    result = {
        **results,
        "best_step": progress.best_step,
        "seed": run.config.seed,
        "wall_seconds": wall_seconds,
        "dataset": {"source": run.config.data.source} | {name: getattr(run.dataset, name) for name in names},
        "versions": versions(),
    }
    (run.workdir / "result.json").write_text(json.dumps(result, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it computes with."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain")
    ours = {"python": platform.python_version(), "gr_jax": gr_jax.__version__}
    return ours | {name: importlib.metadata.version(name) for name in packages}


def describe(run: Run, rows: pipeline.TrainRows, train_state: state.TrainState) -> str:
    """What is about to happen, in a few lines."""
    dataset, config = run.dataset, run.config
    size = sum(a.size for a in jax.tree.leaves(train_state.params))
    mesh = " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    step, last = int(train_state.step), last_step(config, rows)
    return "\n".join(
        [
            f"data    {dataset.num_users:,} users, {dataset.num_items:,} items, {dataset.num_events:,} events",
            f"model   {config.model.kind}, {config.model.num_blocks} blocks, {size:,} parameters",
            f"loss    {config.loss.kind}",
            f"batch   {rows.batch_rows} rows of {rows.row_length} tokens, {rows.fill:.1%} of them real",
            f"devices {run.mesh.size} {jax.devices()[0].device_kind} ({mesh})",
            f"steps   {rows.steps_per_epoch} an epoch, {step} of {last} done"
            + (": resuming" if 0 < step < last else ""),
        ]
    )


def train_line(step: int, epoch: float, values: dict[str, float]) -> str:
    """The console line of a training report."""
    line = f"step {step:>6}  epoch {epoch:6.2f}  loss {values['loss']:.4f}"
    if "step_ms" in values:
        line += f"  {values['step_ms']:.0f} ms/step  {values['users_per_second']:,.0f} users/s"
        line += f"  {values['tokens_per_second']:,.0f} tokens/s  mfu {values['mfu']:.1%}"
    return line


def valid_line(step: int, epoch: float, result: dict[str, float], *, is_best: bool) -> str:
    """The console line of a validation."""
    shown = "  ".join(f"{name} {result[name]:.4f}" for name in ("hr@10", "ndcg@10", "log_perplexity"))
    return f"step {step:>6}  epoch {epoch:6.2f}  valid  {shown}" + ("  best" if is_best else "")


def final_table(results: dict, popularity: dict) -> str:
    """The metrics of both splits, beside those of ranking by popularity."""
    columns = (results["valid"], results["test"], popularity)
    rows = [(name, *(f"{column[name]:.4f}" if name in column else "" for column in columns)) for name in SHOWN]
    return reporting.table([("metric", "valid", "test", "popularity (test)"), *rows])


if __name__ == "__main__":
    cli.run(main)
