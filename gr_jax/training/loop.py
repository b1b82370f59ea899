"""The training loop: step, report, validate, save, until the run is over or a signal arrives."""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from gr_jax.data.batches.loader import read_batches
from gr_jax.training import processes, sharding
from gr_jax.training.checkpoint import Checkpoints, NotSaved, Progress
from gr_jax.training.console import say, train_line, valid_line, vocabulary_line
from gr_jax.training.metrics_log import MetricsLog
from gr_jax.training.objective import Objective, is_over, last_step
from gr_jax.training.speed import SpeedMeter
from gr_jax.training.state import TrainState, shardings_of
from gr_jax.training.tables.admission import catalogue_maker, make_update

# Told the epochs done and the score of each validation; True ends the run after it.
Judge = Callable[[int, float], bool]


def train_loop(
    objective: Objective,
    state: TrainState,
    progress: Progress,
    checkpoints: Checkpoints,
    log: MetricsLog,
    *,
    started: float,
    interruption: Interruption,
    judge: Judge | None = None,
) -> tuple[TrainState, Progress, int]:
    """Train until the run is over or a signal arrives at a process.

    Args:
      objective: retrieval or ranking.
      state: where to begin; its memory is reused.
      progress: of the steps before.
      checkpoints, log: where the run is saved and its metrics go.
      started: `time.monotonic()` at the start of the run, as if it had never been interrupted.
      interruption: of this process.
      judge: told of each validation; may end the run after it.

    Returns:
      The state, saved if the disk allows; the progress; and the number of the signal, 0 = none.

    Raises:
      Diverged: a loss or a parameter is not finite.
    """
    run, plan, train = objective.run, objective.plan, objective.run.config.train
    is_stream = train.mode == "streaming"
    step, last, stop = int(state.step), last_step(objective), 0
    if is_over(objective, step, progress):
        return state, progress, stop

    # The programs, compiled at their first call.
    shardings = shardings_of(state)
    train_step = jax.jit(
        objective.make_step(),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(run.mesh)),
    )
    update_vocabulary = make_update(run.config.vocabulary, run.vocabulary, shardings, run.mesh)
    max_over_processes = processes.max_over_processes(run.mesh)

    # Batches are read ahead in a thread; metrics stay on the device until the next step is queued.
    batches = read_batches(plan, step, last, sharding.share_of_process(run.mesh))
    batch_sharding = sharding.batch_sharding(run.mesh)
    key = jax.random.fold_in(jax.random.key(run.config.seed), 1)
    meter = SpeedMeter(objective.cost, run.config.model.compute_dtype, progress.losses)
    pending: list[tuple[int, dict]] = []
    say("compile the training step ...")

    for batch in batches:
        batch = sharding.put(batch, batch_sharding)
        with jax.set_mesh(run.mesh):  # where the attention kernels find the axes of the batch
            state, values = train_step(state, batch, key)
        step += 1
        state, revision = update_vocabulary(state, step)
        if revision is not None:
            say(vocabulary_line(step, epochs_at(objective, step), revision))

        # One step late, so that the device never waits for the host. All processes see the largest
        # signal of all, so they stop after the same step.
        pending.append((step, values | {"signal": max_over_processes(interruption.signal)}))
        losses, stop = fetch(pending, leave=1)
        report(objective, losses, meter, log)
        epoch, step_of_epoch = plan.locate(step)

        # A stream that stops inside a window has trained on a part of it: no test on it then.
        ends_epoch = step_of_epoch == 0 and epoch % train.validate_every == 0
        validates = ends_epoch or (step == last and not is_stream)
        if not (validates or stop or step == last or step % train.checkpoint_every == 0):
            continue

        losses, late_stop = fetch(pending, leave=0)
        stop = stop or late_stop
        report(objective, losses, meter, log)
        meter.pause()
        check_finite(step, state.params)
        before, ends = progress, False
        if validates:
            progress, score = validate(objective, step, state, progress, log)
            ends = judge is not None and judge(epoch, score)
        if is_stream:  # its newest parameters are its best, validated or not
            progress = dataclasses.replace(progress, best_step=step)
        progress = dataclasses.replace(
            progress, wall_seconds=time.monotonic() - started, losses=meter.unreported
        )
        progress = save(checkpoints, step, state, progress, before)
        meter.resume()
        if stop or ends or is_over(objective, step, progress):
            break
    return state, progress, stop


def epochs_at(objective: Objective, step: int) -> float:
    """Epochs done after `step` steps."""
    plan = objective.plan
    epoch, k = plan.locate(step)
    return epoch + (k / (plan.first_step(epoch + 1) - plan.first_step(epoch)) if k else 0.0)


def report(
    objective: Objective, losses: Mapping[int, float], meter: SpeedMeter, log: MetricsLog
) -> None:
    """Count the losses of these steps, and tell the means after every `log_every` steps."""
    for step, loss in losses.items():
        meter.add(loss)
        if step % objective.run.config.train.log_every == 0:
            values = meter.report() | {"fill": objective.cost.fill}
            log.write(step, objective.plan.locate(step)[0], "train", values)
            say(train_line(step, epochs_at(objective, step), values))


def fetch(pending: list[tuple[int, dict]], *, leave: int) -> tuple[dict[int, float], int]:
    """Take all but the newest `leave` entries off `pending`.

    Returns:
      Their losses by step, and the first signal among them or 0.

    Raises:
      Diverged: a loss is not finite.
    """
    losses, stop = {}, 0
    while len(pending) > leave:
        step, values = pending.pop(0)
        losses[step] = float(values["loss"])
        if not math.isfinite(losses[step]):
            raise Diverged(step, f"loss={losses[step]}")
        stop = stop or int(values["signal"])
    return losses, stop


def validate(
    objective: Objective, step: int, state: TrainState, progress: Progress, log: MetricsLog
) -> tuple[Progress, float]:
    """Validate the parameters after `step` and log the metrics: the progress, and the score."""
    epoch = objective.plan.locate(step)[0]
    if not progress.best_step:
        say(
            "validate, for the first time ..."
        )  # it is compiled, which takes as long as some epochs
    result = objective.validate(catalogue_maker(objective.run.mesh)(state), epoch)
    score = processes.broadcast_from_first(objective.score(result, epoch))
    progress = progress.after_validation(step, score)
    if result is not None:
        log.write(step, epoch, "valid", result)
        is_best = progress.best_step == step
        epoch = epochs_at(objective, step)
        say(valid_line(step, epoch, result, objective, is_best=is_best))
    return progress, score


def save(
    checkpoints: Checkpoints, step: int, state: TrainState, progress: Progress, before: Progress
) -> Progress:
    """Save `step` and return `progress`; if the disk is full, with the best step of `before`.

    Raises:
      RuntimeError: one of several processes could not write, and the others wait for it in the
        middle of the save.
    """
    try:
        checkpoints.save(step, state, progress)
        return progress
    except NotSaved as error:
        if jax.process_count() > 1:
            raise RuntimeError(f"step {step} could not be saved ({error})") from error
        print(
            f"warning: step {step} could not be saved ({error}); {checkpoints.last_saved}",
            file=sys.stderr,
            flush=True,
        )
        return dataclasses.replace(
            progress, best_step=before.best_step, best_value=before.best_value
        )


class Interruption:
    """SIGTERM and Ctrl-C as a number that the loop reads between two steps.

    Inside the `with` block the first signal only sets `signal`; a second one ends the process.
    Signals go to the main thread alone: a training in another one does not see them.
    """

    signal = 0  # number of the signal received; 0 = none

    def __enter__(self) -> Interruption:
        is_main = threading.current_thread() is threading.main_thread()
        self._previous = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
            if is_main
        }
        return self

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._previous[signal.Signals(number)])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Diverged(ValueError):
    """A loss or parameter is not finite; nothing was saved since the last checkpoint."""

    def __init__(self, step: int, what: str):
        remedy = "try a lower config.optimizer.learning_rate in another --workdir"
        super().__init__(f"step {step}: {what}; the last checkpoint is from before it; {remedy}")


def check_finite(step: int, params: dict) -> None:
    """Raise `Diverged` if a parameter is not finite: the gradients of a finite loss need not be."""
    for path, ok in jax.tree_util.tree_leaves_with_path(_all_finite(params)):
        if not ok:
            raise Diverged(step, f"{sharding.path_name(path)} is not finite")


@jax.jit
def _all_finite(params: dict) -> dict:
    """True for each array whose elements are all finite."""
    return jax.tree.map(lambda array: jnp.isfinite(array).all(), params)
