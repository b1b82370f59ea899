"""The task of a run: ranking where its config names ranking tasks, else retrieval."""

from __future__ import annotations

from gr_jax.training.ranking import objective as ranking
from gr_jax.training.retrieval import objective as retrieval
from gr_jax.training.run import Run
from gr_jax.training.task import Task


def task_of(run: Run) -> Task:
    """What `run` is about."""
    return (ranking if run.config.ranking.tasks else retrieval).task(run)
