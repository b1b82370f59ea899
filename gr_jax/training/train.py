"""A training: the run in a workdir, from its data to its final table."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from gr_jax.config import Config
from gr_jax.training import trackers
from gr_jax.training.checkpoint import Checkpoints, NotSaved, Progress
from gr_jax.training.console import describe, patience_line, say
from gr_jax.training.init_from import first_state
from gr_jax.training.loop import Interruption, Judge, train_loop
from gr_jax.training.metrics_log import MetricsLog
from gr_jax.training.objective import is_over, objective_of
from gr_jax.training.result import finish
from gr_jax.training.run import open_run
from gr_jax.training.workdir import (
    check_config,
    claim,
    dataset_to_train_on,
    only_training,
)


def train(config: Config, workdir: Path, *, judge: Judge | None = None) -> int:
    """Run or resume the training of `config` in `workdir`; return the exit code.

    judge: compares the run with others by its validations, and may end it. The test split is then
    not looked at; the same call without a judge does that.
    """
    start_of_session = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_training(workdir))
        interruption = stack.enter_context(Interruption())

        # -- Data, mesh and model -----------------------------------------------------------------
        check_config(workdir, config)
        trackers.check(config.train.trackers)
        run = open_run(config, workdir, dataset_to_train_on(workdir, config))
        claim(workdir, config, run.dataset)

        # -- State: from the newest checkpoint, or fresh ------------------------------------------
        checkpoints = Checkpoints(workdir / "checkpoints", writes=True)
        stack.callback(checkpoints.close)
        target = run.planned_state()
        state, progress = checkpoints.restore(target) or (first_state(run, target), Progress())
        started = start_of_session - progress.wall_seconds

        # -- Objective: batches, step and metrics of retrieval or ranking -------------------------
        objective = objective_of(run)
        say(describe(objective, state, progress))

        # -- Loop ---------------------------------------------------------------------------------
        done = int(state.step)
        log = MetricsLog(
            workdir,
            resume_step=done,
            open_trackers=lambda: trackers.open_all(config, workdir, resume_step=done),
        )
        stack.callback(log.close)
        state, progress, signal = train_loop(
            objective,
            state,
            progress,
            checkpoints,
            log,
            started=started,
            interruption=interruption,
            judge=judge,
        )
        step, again = int(state.step), "the same command goes on"
        if line := patience_line(objective, step, progress):
            say(line)
        if not checkpoints.has(step):
            unsaved = f"{workdir}: step {step} is not saved, {checkpoints.last_saved}: make room"
            if not signal:
                raise NotSaved(f"{unsaved}; {again}")
            say(f"interrupted: {unsaved}; {again}")
            return 128 + signal
        if signal and not is_over(objective, step, progress):
            say(f"interrupted: step {step} is saved in {workdir}; {again}")
            return 128 + signal

        if judge is not None:
            return 0

        # -- Finish: evaluate the best checkpoint -------------------------------------------------
        finish(objective, state, progress, checkpoints, log, started=started)
        log.check_complete()
    return 0
