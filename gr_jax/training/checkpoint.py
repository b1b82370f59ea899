"""Checkpoints in a workdir: the newest two and the best by validation, restored against an abstract target."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from gr_jax.config import ConfigError

# Orbax warns at every save without a metric; here only validated steps have one, on purpose.
logging.getLogger("absl").addFilter(lambda record: "`tracked_metric`" not in str(record.msg))


@dataclass(frozen=True)
class Progress:
    """What a run must remember besides its TrainState, for early stopping and the final report."""

    best_step: int = 0  # step of the best validation so far; 0 = none yet
    best_value: float = -math.inf  # its score, such as NDCG@10
    stale: int = 0  # validations since then
    wall_seconds: float = 0.0  # of training, validation included, over all sessions of the run

    def after_validation(self, step: int, value: float) -> Progress:
        """Progress with the validation at `step`; of equal values the later is the best, as the manager keeps it."""
        best = (step, value) if value >= self.best_value else (self.best_step, self.best_value)
        return replace(
            self,
            best_step=best[0],
            best_value=best[1],
            stale=0 if value > self.best_value else self.stale + 1,
        )


def _value(metrics: dict[str, float]) -> float:
    return metrics["score"]


class Checkpoints:
    """The checkpoint folder of a run. A step is complete or absent: a kill while saving leaves the step before it."""

    def __init__(self, folder: Path):
        best = keep.BestN(get_metric_fn=_value, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy([keep.LatestN(2), best]),
            best_fn=_value,  # makes the manager write the metrics down: a resumed run must know which step is best
            # Synchronous: on the CPU backend an asynchronous save could still read a buffer that the next step owns.
            enable_async_checkpointing=False,
        )
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: Any, progress: Progress, score: float | None = None) -> None:
        """Writes `state` and `progress` as `step`; the `score` of a validation makes it a candidate for the best."""
        if step in self._manager.all_steps():  # the same step again, now with its validation
            self._manager.delete(step)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(asdict(progress)))
        metrics = None if score is None else {"score": score}
        self._manager.save(step, args=args, metrics=metrics, force=True)

    def restore(self, target: Any, *, step: int | None = None) -> tuple[Any, Progress] | None:
        """The state and progress of `step`, or of the newest step that is not damaged; None when there is none.

        Args:
          target: a tree of ShapeDtypeStructs with shardings, or of arrays.
          step: the step wanted; None = the newest.

        Raises:
          ConfigError: `step` is damaged or missing, or every step is damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True) if step is None else [step]
        reason = ""
        for candidate in steps:
            try:
                return self._read(candidate, target)
            except Exception as error:  # orbax and tensorstore raise plain Exceptions for damaged files
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                print(f"warning: checkpoint {candidate} cannot be read ({reason})", file=sys.stderr, flush=True)
        if steps:
            raise ConfigError(f"no readable checkpoint in {self.folder} ({reason}): choose another --workdir")
        return None

    def _read(self, step: int, target: Any) -> tuple[Any, Progress]:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore())
        restored: Any = self._manager.restore(step, args=args)
        jax.block_until_ready(restored.state)
        return restored.state, Progress(**restored.progress)

    def newest_arrays(self) -> Any:
        """The newest state as host arrays in nested containers, without a target: for inspection."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        restored: Any = self._manager.restore(self._manager.latest_step(), args=args)
        return restored.state

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()
