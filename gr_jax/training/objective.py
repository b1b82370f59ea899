"""The objective of a run, retrieval or ranking: its batches, its step and its metrics.

Both have the members that the training loop works with:

    run, epochs                     the run, and its passes over the data (or windows of a stream)
    plan, cost                      the training batches, and what an average one holds and costs
    make_step()                     the training step, a pure function
    validate(params, epochs_done)   metrics while training; None if there is nothing to validate on
    score(metrics, epochs_done)     one number for them; the checkpoint with the highest is the best
    complete(params)                fits what follows the training; a line that tells it, or ""
    evaluate(params, split, ranks)  metrics of a split; retrieval writes the ranks to a file, if any
    baselines(tell)                 name -> metrics on the test split, to compare with
    about, shown, headline          console lines, and the metrics of the final table and of a line
"""

from __future__ import annotations

from gr_jax.training.checkpoint import Progress
from gr_jax.training.ranking.objective import Ranking
from gr_jax.training.retrieval.objective import Retrieval
from gr_jax.training.run import Run

Objective = Retrieval | Ranking


def objective_of(run: Run) -> Objective:
    """Ranking if the config names tasks to predict, else retrieval."""
    return Ranking(run) if run.config.ranking.tasks else Retrieval(run)


def is_over(objective: Objective, step: int, progress: Progress) -> bool:
    """True if all steps are done, or validation has not improved for `patience` validations."""
    return step >= last_step(objective) or is_out_of_patience(objective, progress)


def is_out_of_patience(objective: Objective, progress: Progress) -> bool:
    """True if validation has not improved for `patience` validations.

    Half as many, rounded up, in a run that began from an earlier one: it is near its best at once
    (`experiments/quality/daily.py`).
    """
    train = objective.run.config.train
    patience = -(-train.patience // 2) if train.init_from else train.patience
    return 0 < patience <= progress.stale


def last_step(objective: Objective) -> int:
    """Steps of a whole run by its config; a stream ends with its last window at the latest."""
    train = objective.run.config.train
    planned = objective.plan.first_step(objective.epochs)
    steps = train.steps or planned
    return min(steps, planned) if train.mode == "streaming" else steps
