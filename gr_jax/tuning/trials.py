"""The trials of a sweep: shared by the processes that work on them, each taken by one.

A trial is a run in `trial-N`, trained in this process: pruning sees every validation at once, and
no trial pays for the imports. It holds a lock as long as it runs, so one whose process was killed
is known by the lock that is free, and goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import filelock
import jax

from gr_jax.config import Config, ConfigError
from gr_jax.config.overrides import override_all
from gr_jax.errors import line_of
from gr_jax.training.console import say, silence
from gr_jax.training.train import train
from gr_jax.tuning.space import Dimension, combinations, suggest

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

STORE = "sweep.db"  # in the folder of a sweep
WARM_UP = 2  # validations of a trial before it may be pruned
UNPRUNED = 4  # trials that go to their ends before others are compared with them


class Sweep(NamedTuple):
    """What is searched and where."""

    folder: Path
    config: Config
    dimensions: Sequence[Dimension]
    study: Study

    def workdir(self, number: int) -> Path:
        """The folder of a trial."""
        return self.folder / f"trial-{number}"


def open_study(folder: Path) -> Study:
    """The study in the SQLite store of a sweep, which is made if it is not there.

    Raises:
      ConfigError: Optuna is not installed, or the store is damaged.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError("sweeps need the package optuna: pip install 'gr-jax[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with _alone(folder):
            return optuna.create_study(
                storage=f"sqlite:///{folder / STORE}",
                study_name="sweep",
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(UNPRUNED, WARM_UP),
            )
    except Exception as error:  # of sqlalchemy, which is Optuna's
        raise ConfigError(
            f"{folder / STORE}: not a store of Optuna ({type(error).__name__}); move it away"
        ) from None


def run_all(sweep: Sweep, trials: int) -> int:
    """Run what is left of `trials` trials; 0, or 128 + the number of a signal.

    Other processes may do the same at once.
    """
    while True:
        with _next(sweep, trials) as trial:
            if trial is None:
                return 0
            code = _run(sweep, trial)
        if code:
            return code


def _alone(folder: Path) -> filelock.BaseFileLock:
    """The lock of what one process of a sweep does at a time."""
    return filelock.FileLock(folder / ".lock", fallback_to_soft=False)


@contextlib.contextmanager
def _next(sweep: Sweep, trials: int) -> Iterator[Trial | None]:
    """A trial for this process alone: one that was killed, or a new one; None if all are taken."""
    from optuna.samplers import TPESampler
    from optuna.trial import Trial, TrialState

    study, listed = sweep.study, combinations(sweep.dimensions)
    with contextlib.ExitStack() as held:
        with _alone(sweep.folder):
            if listed is not None and len(listed) <= trials:
                trials = len(listed)
                for settings in listed if not study.trials else ():
                    study.enqueue_trial(settings)
            trial = None
            for known in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                with contextlib.ExitStack() as attempt:
                    if not _hold(sweep.workdir(known.number), attempt):
                        continue
                    # It may have ended between the look at the store and the lock.
                    now = study.get_trials(deepcopy=False)[known.number].state
                    if now != TrialState.RUNNING:
                        continue
                    held.enter_context(attempt.pop_all())
                trial = Trial(study, known._trial_id)
                say(f"trial {trial.number}: its process has ended, going on with it")
                break
            begun = [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
            if trial is None and len(begun) < trials:
                # By its number, so that a sweep that was interrupted asks for what it would have.
                seed = sweep.config.seed + len(begun)
                study.sampler = TPESampler(seed=seed, n_startup_trials=max(3, trials // 4))
                trial = study.ask()
                _hold(sweep.workdir(trial.number), held)
        yield trial


def _hold(workdir: Path, held: contextlib.ExitStack) -> bool:
    """Take the lock of a trial until `held` ends; False if another process has it."""
    workdir.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(workdir / ".trial.lock", fallback_to_soft=False)
    try:
        held.enter_context(lock.acquire(blocking=False))
    except filelock.Timeout:
        return False
    return True


def _run(sweep: Sweep, trial: Trial) -> int:
    """Train a trial and tell the study; 0, or 128 + the number of a signal."""
    from optuna.trial import TrialState

    settings = suggest(trial, sweep.dimensions)
    name = f"trial {trial.number}"
    say(f"{name}: {' '.join(f'{field}={text}' for field, text in settings.items())}")
    scores = dict(sweep.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
    pruned = False

    def judge(epoch: int, score: float) -> bool:
        nonlocal pruned
        if epoch not in scores:
            scores[epoch] = score
            trial.report(score, epoch)
        pruned = bool(trial.should_prune())
        return pruned

    try:
        config = override_all(sweep.config, settings)
        with silence():
            code = train(config, sweep.workdir(trial.number), judge=judge)
    except Exception as error:
        if not (line := line_of(error)):
            raise
        trial.set_user_attr("failed", line)
        sweep.study.tell(trial, state=TrialState.FAIL)
        say(f"{name}: failed: {line}")
        return 0
    finally:
        jax.clear_caches()  # no other trial has its programs

    if code:
        say(f"interrupted: the same command goes on with {name}")
        return code
    best = max(scores.values())
    if pruned:
        sweep.study.tell(trial, state=TrialState.PRUNED)
    else:
        sweep.study.tell(trial, best)
    say(f"{name}: {best:.4f}{', ended early' * pruned}")
    return 0


class Outcome(NamedTuple):
    """What is known of a trial."""

    number: int
    state: str  # complete, pruned, failed or running
    settings: dict[str, str]
    scores: dict[int, float]  # of validation, by epochs done

    @property
    def score(self) -> float:
        """The best so far; nan before the first."""
        return max(self.scores.values(), default=float("nan"))


def outcomes(sweep: Sweep) -> list[Outcome]:
    """All trials that have begun, in their order."""
    found = []
    for trial in sweep.study.get_trials(deepcopy=False):
        state = {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
        if state == "waiting":
            continue
        settings = suggest(trial, sweep.dimensions) if trial.params else {}
        scores = dict(trial.intermediate_values)
        found.append(Outcome(trial.number, state, settings, scores))
    return found


def count_running(sweep: Sweep) -> int:
    """Trials that a process works on."""
    return sum(outcome.state == "running" for outcome in outcomes(sweep))


def best(sweep: Sweep) -> Outcome:
    """The trial with the best validation among those that went to their end.

    Raises:
      ConfigError: all failed; with the reason of the last.
    """
    complete = [outcome for outcome in outcomes(sweep) if outcome.state == "complete"]
    if complete:
        return max(complete, key=lambda outcome: outcome.score)
    reasons = [t.user_attrs.get("failed", "") for t in sweep.study.get_trials(deepcopy=False)]
    raise ConfigError(f"no trial went to its end; the last: {reasons[-1]}")
