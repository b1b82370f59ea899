"""Trains a recommender: prepares the data if needed, trains, validates, saves, tests the best checkpoint at the end.

    python -m gr_jax.train --config=configs/ml_1m.py --config.data.path=ml-1m

Running it again with the same workdir resumes. Ctrl-C and SIGTERM save and stop. On many hosts the same command runs on
each, with --coordinator=auto under SLURM, or --coordinator=HOST:PORT --processes=N --process=I (docs/many_hosts.md).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

import gr_jax
from gr_jax import cli
from gr_jax.config import Config
from gr_jax.data.batches.loader import read_batches
from gr_jax.files import write_whole
from gr_jax.report import write_after_training
from gr_jax.training import metrics_log, processes, sharding, state
from gr_jax.training.checkpoint import Checkpoints, NotSaved, Progress
from gr_jax.training.divergence import Diverged, check_finite
from gr_jax.training.interruption import Interruption
from gr_jax.training.metrics_log import say
from gr_jax.training.run import Run, check_workdir, claim_workdir, open_run
from gr_jax.training.speed import SpeedMeter
from gr_jax.training.tables.admission import Revision, catalogue_maker, make_update
from gr_jax.training.task import Batches, Task
from gr_jax.training.tasks import task_of
from gr_jax.training.workdir import only_training


def main(argv: list[str]) -> int:
    """Trains what the command line asks for; 0 when the run is complete, 128 + signal when it was interrupted."""
    flags: dict[str, cli.Flag] = {
        "workdir": (Path, None, "folder of the run; default runs/<config>[-<variant>]"),
        "report": (
            bool,
            True,
            "write report.html at the end of one process; --report=false leaves it out",
        ),
        **processes.FLAGS,
    }
    args = cli.parse(argv, doc=__doc__ or "", flags=flags, config="required")
    workdir = args.workdir or Path(default_workdir(args.config_spec))
    processes.join(args.coordinator, args.processes, args.process, args.peer_timeout)
    with processes.ended_together():
        code = train(args.config, workdir)
        if code == 0 and args.report and jax.process_count() == 1:
            write_after_training(workdir)
        return code


def default_workdir(spec: str) -> str:
    """runs/ml_1m-large for configs/ml_1m.py:large."""
    file, _, variant = spec.partition(":")
    return f"runs/{Path(file).stem}" + (f"-{variant}" if variant else "")


def train(config: Config, workdir: Path) -> int:
    """Runs or resumes the training of `config` in `workdir`; returns the exit code."""
    started = time.monotonic()
    with only_training(workdir), Interruption() as interruption:
        check_workdir(config, workdir)
        run = open_run(config, workdir)
        claim_workdir(run)
        target = run.planned_state()
        checkpoints = Checkpoints(workdir / "checkpoints", writes=True)
        train_state, progress = checkpoints.restore(target) or (run.fresh_state()[0], Progress())
        # Step i stands for the same users on any number of devices: those of the first session set the batch size.
        run = dataclasses.replace(
            run, device_multiple=progress.device_multiple or run.device_multiple
        )
        progress = dataclasses.replace(progress, device_multiple=run.device_multiple)
        task = task_of(run)
        batches = task.batches()
        say(describe(run, batches, train_state))
        clock = Clock(started, progress.wall_seconds)
        log = metrics_log.MetricsLog(workdir, resume_step=int(train_state.step))
        session = Session(run, task, batches, checkpoints, log, clock)
        try:
            train_state, progress, signal = loop(
                session, train_state, state.shardings_of(target), progress, interruption
            )
            if signal and not is_over(session, int(train_state.step), progress):
                say(
                    f"interrupted: step {checkpoints.newest_step()} is saved in {workdir}; the same command goes on"
                )
                return 128 + signal
            finish(session, train_state, progress)
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


@dataclasses.dataclass(frozen=True)
class Session:
    """What the loop works with, from start or resumption to end or interruption."""

    run: Run
    task: Task
    batches: Batches
    checkpoints: Checkpoints
    log: metrics_log.MetricsLog
    clock: Clock

    @property
    def last_step(self) -> int:
        """Steps of the whole run, unless it stops early."""
        return last_step(self.run.config, self.batches)

    def epoch_at(self, step: int) -> float:
        """Epochs done after `step` steps."""
        plan = self.batches.plan
        epoch, k = plan.locate(step)
        return epoch + (k / (plan.first_step(epoch + 1) - plan.first_step(epoch)) if k else 0.0)


def last_step(config: Config, batches: Batches) -> int:
    """Steps of a whole run: as many as `config` says; a stream ends with its last window, however many that are."""
    planned = batches.plan.first_step(batches.epochs)
    steps = config.train.steps or planned
    return min(steps, planned) if config.train.mode == "streaming" else steps


def is_over(session: Session, step: int, progress: Progress) -> bool:
    """Whether no step is left to take: all are done, or validation has not improved for `patience` validations."""
    out_of_patience = 0 < session.run.config.train.patience <= progress.stale
    return step >= session.last_step or out_of_patience


def loop(
    session: Session,
    train_state: state.TrainState,
    shardings: state.TrainState,
    progress: Progress,
    interruption: Interruption,
) -> tuple[state.TrainState, Progress, int]:
    """Steps until the run is over or a signal arrives at a process; the state returned is saved, if the disk allows.

    Returns:
      The state, the progress and the number of the signal, 0 = none.
    """
    run, task, plan, log = session.run, session.task, session.batches.plan, session.log
    config, step = run.config, int(train_state.step)
    is_stream = config.train.mode == "streaming"
    out_shardings = shardings, sharding.replicated(run.mesh)
    train_step = jax.jit(task.train_step(), donate_argnums=0, out_shardings=out_shardings)
    train_step = sharding.on_mesh(run.mesh, train_step)
    update_vocabulary = make_update(config.vocabulary, run.vocabulary, shardings, run.mesh)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    meter = make_meter(session.batches, config.model.compute_dtype)
    greatest_everywhere = processes.greatest_everywhere(run.mesh)
    pending: list[tuple[int, dict]] = []  # metrics still on the device, with their step
    signal = 0

    if is_over(session, step, progress):
        return train_state, progress, signal
    for batch in read_batches(plan, step, session.last_step, sharding.share_of_process(run.mesh)):
        batch = sharding.put(batch, sharding.batch_sharding(run.mesh))
        train_state, values = train_step(train_state, batch, key)
        step += 1
        train_state, revision = update_vocabulary(train_state, step)
        if revision is not None:
            say(vocabulary_line(step, session.epoch_at(step), revision))
        # All processes stop after the same step, because all know of a signal when they see its number here.
        pending.append((step, values | {"signal": greatest_everywhere(interruption.signal)}))
        # one step late: the device never waits for the host
        losses, signal = fetch(pending, leave=1)
        meter.add(losses)
        epochs_done, step_of_epoch = plan.locate(step)
        ends_epoch = step_of_epoch == 0 and epochs_done % config.train.validate_every == 0
        is_last = step == session.last_step
        # A stream that stops inside a window has trained on a part of it: there is none to test it on.
        validates = ends_epoch or (is_last and not is_stream)
        if step % config.train.log_every == 0 and meter.has_news:
            values = meter.report() | {"fill": session.batches.fill}
            log.write(step, epochs_done, "train", values)
            say(train_line(step, session.epoch_at(step), values))
        if validates or signal or is_last or step % config.train.checkpoint_every == 0:
            losses, late_signal = fetch(pending, leave=0)
            signal = signal or late_signal
            meter.add(losses)
            meter.pause()
            check_finite(step, train_state.params)
            before = progress
            if validates:
                result = task.validate(catalogue_maker(run.mesh)(train_state), epochs_done)
                score = processes.of_first(task.score(result, epochs_done))
                progress = progress.after_validation(step, score)
                if result is not None:
                    log.write(step, epochs_done, "valid", result)
                    is_best = progress.best_step == step
                    say(
                        valid_line(
                            step, session.epoch_at(step), result, task.headline, is_best=is_best
                        )
                    )
            if is_stream:  # its newest parameters are its best, validated or not
                progress = dataclasses.replace(progress, best_step=step)
            progress = dataclasses.replace(progress, wall_seconds=session.clock.seconds())
            progress = save(session, step, train_state, progress, before)
            meter.resume()
            if signal or is_over(session, step, progress):
                break
    return train_state, progress, signal


def save(
    session: Session, step: int, train_state: state.TrainState, progress: Progress, before: Progress
) -> Progress:
    """Saves `step`; returns `progress`, without a best step that could not be saved.

    Raises:
      RuntimeError: one of several processes could not write, and the others wait for it in the middle of the save.
    """
    try:
        session.checkpoints.save(step, train_state, progress)
    except NotSaved as error:
        if jax.process_count() > 1:
            raise RuntimeError(f"step {step} could not be saved ({error})") from error
        last = session.checkpoints.newest_step()
        print(
            f"warning: step {step} could not be saved ({error}); the last checkpoint is step {last}",
            file=sys.stderr,
        )
        return dataclasses.replace(
            progress, best_step=before.best_step, best_value=before.best_value
        )
    return progress


def fetch(pending: list[tuple[int, dict]], *, leave: int) -> tuple[list[float], int]:
    """Takes all but the newest `leave` entries off `pending`; their losses, and a signal that arrived by then or 0.

    Raises:
      Diverged: a loss is not finite.
    """
    losses, signal = [], 0
    while len(pending) > leave:
        step, values = pending.pop(0)
        losses.append(float(values["loss"]))
        if not math.isfinite(losses[-1]):
            raise Diverged(step, f"loss={losses[-1]}")
        signal = signal or int(values["signal"])
    return losses, signal


def make_meter(batches: Batches, compute_dtype: str) -> SpeedMeter:
    """A meter for batches of this mean size."""
    return SpeedMeter(
        users_per_step=batches.users_per_step,
        tokens_per_step=batches.tokens_per_step,
        flops_per_step=batches.flops_per_step,
        compute_dtype=compute_dtype,
    )


def finish(session: Session, train_state: state.TrainState, progress: Progress) -> None:
    """Evaluates the checkpoint with the best validation on both splits, and reports that."""
    task = session.task
    step = int(train_state.step)
    if (
        not progress.best_step
    ):  # a run cut short by a lower train.steps, before its first validation
        progress = dataclasses.replace(progress, best_step=step)
    if progress.best_step != step:
        target = state.abstract(train_state)
        state.free(train_state)  # there need not be room for two
        best = session.checkpoints.restore(target, step=progress.best_step)
        assert best is not None
        train_state = best[0]
    params = catalogue_maker(session.run.mesh)(train_state)
    results = {"valid": valid_result(session, params), "test": task.evaluate(params, "test")}
    processes.first_then_others(
        lambda: report(session, results, progress) if processes.is_first() else None
    )


def report(session: Session, results: dict, progress: Progress) -> None:
    """Writes result.json and the test line of metrics.jsonl, and prints the table."""
    run, task, log = session.run, session.task, session.log
    if reported_step(run.workdir / "result.json") != progress.best_step:
        log.write(
            progress.best_step, int(session.epoch_at(progress.best_step)), "test", results["test"]
        )
    baseline = task.baseline()
    write_result(run, results, baseline, progress, session.clock.seconds())
    say(final_table(results, baseline, task.shown))
    wall = session.clock.seconds()
    say(
        f"best checkpoint: step {progress.best_step} in {run.workdir / 'checkpoints'}; {wall:.0f} s in all"
    )
    say(f"next: python -m gr_jax.evaluate --workdir={run.workdir}, or another --config of configs/")


def reported_step(result: Path) -> int | None:
    """The best step that a result.json tells; None where there is none, or a damaged one, which is written anew."""
    try:
        return json.loads(result.read_text())["best_step"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def valid_result(session: Session, params: dict) -> dict[str, float]:
    """Metrics on the validation split; of a stream the last window tested before it was trained on."""
    if session.run.config.train.mode == "streaming":
        return session.log.last("valid")
    return session.task.evaluate(params, "valid")


def write_result(
    run: Run,
    results: dict,
    baseline: tuple[str, dict[str, float]],
    progress: Progress,
    wall_seconds: float,
) -> None:
    """result.json: the metrics of the best checkpoint, those of the baseline, and what they came from."""
    names = ("num_users", "num_items", "num_events")
    result = {
        **results,
        "baseline": {"name": baseline[0], "test": baseline[1]},
        "best_step": progress.best_step,
        "seed": run.config.seed,
        "wall_seconds": wall_seconds,
        "dataset": {"source": run.config.data.source}
        | {name: getattr(run.dataset, name) for name in names},
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
    }
    write_whole(run.workdir / "result.json", json.dumps(result, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it computes with."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain")
    ours = {"python": platform.python_version(), "gr_jax": gr_jax.__version__}
    return ours | {name: importlib.metadata.version(name) for name in packages}


def describe(run: Run, batches: Batches, train_state: state.TrainState) -> str:
    """What is about to happen, in a few lines."""
    dataset, config = run.dataset, run.config
    size = sum(a.size for a in jax.tree.leaves(train_state.params))
    mesh = " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    hosts = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    step, last = int(train_state.step), last_step(config, batches)
    return "\n".join(
        [
            f"data    {dataset.num_users:,} users, {dataset.num_items:,} items, {dataset.num_events:,} events",
            f"model   {config.model.kind}, {config.model.num_blocks} blocks, {size:,} parameters",
            *batches.about,
            f"devices {run.mesh.size} {jax.devices()[0].device_kind} ({mesh}{hosts})",
            f"steps   {batches.plan.first_step(1)} in the first epoch, {step} of {last} done"
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


def vocabulary_line(step: int, epoch: float, revision: Revision) -> str:
    """The console line of rows given and taken."""
    changes = f"{revision.admitted} admitted, {revision.evicted} evicted, {revision.waiting} wait"
    return f"step {step:>6}  epoch {epoch:6.2f}  rows of items: {changes}"


def valid_line(
    step: int, epoch: float, result: dict[str, float], headline: Sequence[str], *, is_best: bool
) -> str:
    """The console line of a validation."""
    shown = "  ".join(f"{name} {result[name]:.4f}" for name in headline if name in result)
    return f"step {step:>6}  epoch {epoch:6.2f}  valid  {shown}" + ("  best" if is_best else "")


def final_table(results: dict, baseline: tuple[str, dict[str, float]], shown: Sequence[str]) -> str:
    """The metrics of both splits, beside those of a baseline on the test split."""
    columns = (results["valid"], results["test"], baseline[1])
    rows = [
        (name, *(f"{column[name]:.4f}" if name in column else "" for column in columns))
        for name in shown
    ]
    return metrics_log.table([("metric", "valid", "test", f"{baseline[0]} (test)"), *rows])


if __name__ == "__main__":
    cli.run(main)
