"""Checkpoints of a run: the newest two and the best by validation."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from gr_jax.config import ConfigError
from gr_jax.training import checksums, processes


@dataclass(frozen=True)
class Progress:
    """The memory of a run besides its TrainState, for early stopping and the final report."""

    best_step: int = 0  # step of the best validation so far; 0 = none yet
    best_value: float = -math.inf  # its score, such as NDCG@10
    stale: int = 0  # validations since then
    wall_seconds: float = 0.0  # of training, validation included, over all sessions of the run
    losses: tuple[float, ...] = ()  # of the steps since the last line of the metrics

    def after_validation(self, step: int, value: float) -> Progress:
        """Progress with the validation at `step`; of equal values the later is the best."""
        best = (step, value) if value >= self.best_value else (self.best_step, self.best_value)
        return replace(
            self,
            best_step=best[0],
            best_value=best[1],
            stale=0 if value > self.best_value else self.stale + 1,
        )


class NotSaved(ValueError):
    """A checkpoint could not be written; what was there before it still is."""


class _NewestAndBest(keep.PreservationPolicy):
    """Keeps the newest two steps and the best."""

    best_step = 0

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: keep.PreservationContext
    ) -> Sequence[bool]:
        del context
        newest = sorted(info.step for info in checkpoints)[-2:]
        return [info.step in (*newest, self.best_step) for info in checkpoints]


class Checkpoints:
    """The checkpoint folder of a run.

    A step is complete or absent: a kill while saving leaves the step before it. All processes of a
    run open the folder, save and restore together, on a disk that they share.

    Args:
      folder: made if it is not there.
      writes: True for the training, which alone removes the rest of a killed save and moves damaged
        steps aside.
    """

    def __init__(self, folder: Path, *, writes: bool = False):
        self.folder, self._writes, self._kept = folder.absolute(), writes, _NewestAndBest()
        if writes:
            processes.first_then_others(self._remove_partial)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            # Synchronous: on the CPU backend an asynchronous save could still read a buffer that
            # the next step owns.
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: PyTree, progress: Progress) -> None:
        """Write `state` and `progress` as `step`; the step before and the best stay.

        Raises:
          NotSaved: no space, or the disk fails. Of several processes, some may then wait for the
            others: end them.
        """
        self._kept.best_step = progress.best_step
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(asdict(progress))
        )
        try:
            if step in self._manager.all_steps():  # repeated after a damaged one
                self._manager.delete(step)
            with _quiet():
                self._manager.save(step, args=args, force=True)
        except (OSError, ValueError) as error:  # tensorstore has ValueErrors for a full disk
            self._forget(step)
            raise NotSaved(_first_line(error)) from error
        try:
            checksums.write(self.folder / str(step), jax.process_index(), jax.process_count())
        except OSError as error:  # the step is whole; those that it replaces may be gone already
            print(
                f"warning: checkpoint {step} has no checksums ({_first_line(error)})",
                file=sys.stderr,
                flush=True,
            )
        # No process goes on, and is killed, before all the checksums are there.
        processes.all_true(True)

    def restore(self, target: PyTree, *, step: int | None = None) -> tuple[PyTree, Progress] | None:
        """The state and progress of `step`, or of the newest intact step; None if there is none.

        Args:
          target: a tree of ShapeDtypeStructs with shardings, or of arrays; None = the progress
            alone, no state.
          step: the step wanted; None = the newest.

        Raises:
          ConfigError: `step` is damaged or missing, or every step is damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True) if step is None else [step]
        reason, damaged = "", []
        for candidate in steps:
            restored, reason = self._try(candidate, target)
            if restored is not None:
                self._move_aside(damaged)
                return restored
            damaged.append(candidate)
            if processes.is_first():
                print(
                    f"warning: checkpoint {candidate} cannot be read ({reason})",
                    file=sys.stderr,
                    flush=True,
                )
        if steps:
            raise ConfigError(
                f"no readable checkpoint in {self.folder} ({reason}): choose another --workdir"
            )
        return None

    def _try(self, step: int, target: PyTree) -> tuple[tuple[PyTree, Progress] | None, str]:
        """The contents of `step`, or None and the damage; the same on all processes."""
        reason = checksums.first_damage(
            self.folder / str(step), jax.process_index(), jax.process_count()
        )
        if not processes.all_true(not reason):
            return None, reason or "another process found it damaged"
        restored = None
        try:
            restored = self._read(step, target)
        except Exception as error:  # orbax and tensorstore raise plain Exceptions for damaged files
            reason = _first_line(error)
        if not processes.all_true(restored is not None):
            return None, reason or "another process could not read it"
        return restored, ""

    def _read(self, step: int, target: PyTree) -> tuple[PyTree, Progress]:
        # Not strict: tables have as many unused entries as the devices need (`table_entries`).
        wanted: dict[str, ocp.args.CheckpointArgs] = (
            {} if target is None else {"state": ocp.args.StandardRestore(target, strict=False)}
        )
        args = ocp.args.Composite(progress=ocp.args.JsonRestore(), **wanted)
        restored: Any = self._manager.restore(step, args=args)
        state = None if target is None else jax.block_until_ready(restored.state)
        known = {field.name for field in fields(Progress)}
        progress = {name: value for name, value in restored.progress.items() if name in known}
        losses = tuple(progress.pop("losses", ()))
        return state, Progress(**progress, losses=losses)

    def _move_aside(self, damaged: Sequence[int]) -> None:
        """Rename damaged steps, so that the repeated steps do not count as older than them."""
        if not (self._writes and damaged):
            return

        def rename() -> None:
            for step in damaged:
                aside = self.folder / f"damaged-{step}"
                if processes.is_first():
                    shutil.rmtree(aside, ignore_errors=True)
                    (self.folder / str(step)).rename(aside)

        processes.first_then_others(rename)
        self._manager.reload()

    def _forget(self, step: int) -> None:
        """Remove the rest of a failed save of `step`."""
        self._remove_partial()
        shutil.rmtree(self.folder / str(step), ignore_errors=True)
        self._manager.reload()

    def _remove_partial(self) -> None:
        if processes.is_first():
            for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)

    def has(self, step: int) -> bool:
        """True if `step` is on disk."""
        return (self.folder / str(step)).is_dir()

    def newest_step(self) -> int:
        """The newest step; 0 if there is none."""
        return self._manager.latest_step() or 0

    @property
    def last_saved(self) -> str:
        """The newest step in words, for a message."""
        step = self.newest_step()
        return f"the last checkpoint is step {step}" if step else "there is no checkpoint"

    def newest_progress(self) -> Progress | None:
        """The progress of the newest intact step, without its arrays; None if there is none."""
        restored = self.restore(None)
        return None if restored is None else restored[1]

    def newest_arrays(self) -> PyTree:
        """The newest state as of `arrays`, for inspection."""
        return self.arrays(self.newest_step())

    def arrays(self, step: int) -> PyTree:
        """The state of `step` as host arrays in nested containers; needs no target.

        Raises:
          ConfigError: `step` is damaged or missing.
        """
        folder: Any = self.folder / str(step) / "state"
        stored: Any = ocp.StandardCheckpointHandler().metadata(folder)
        target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), stored.tree)
        restored = self.restore(target, step=step)
        assert restored is not None
        return restored[0]

    def close(self) -> None:
        """End the manager's threads."""
        self._manager.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracebacks that Orbax logs for an error that it raises as well."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
