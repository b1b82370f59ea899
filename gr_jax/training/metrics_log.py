"""The metrics of a run over time: metrics.jsonl, and the trackers of the run."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gr_jax.config import ConfigError
from gr_jax.files import write_whole
from gr_jax.training import processes, trackers
from gr_jax.training.trackers import Tracker


class MetricsLog:
    """Appends one JSON object a line to metrics.jsonl, and tells the same to trackers.

    Of several processes the first writes; the logs of the others are silent.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        resume_step: int = 0,
        open_trackers: Callable[[], list[Tracker]] = list,
    ):
        """`open_trackers`: called by the process that writes."""
        self._path = workdir / "metrics.jsonl"
        self._trackers: list[Tracker] = []
        self._lost = 0  # lines that could not be written
        self._newest: dict[str, dict[str, float]] = {}  # values of this session by split
        if not processes.is_first():
            return
        self._forget_after(resume_step)
        self._trackers = open_trackers()

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that a resumed run repeats, and a last line cut short by a kill."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError):
                continue
        write_whole(self._path, "".join(line + "\n" for line in kept))

    def write(self, step: int, epoch: int, split: str, values: Mapping[str, float]) -> None:
        """Log `values` of `split` (train, valid, test) at `step`; if the disk is full, warn."""
        if not processes.is_first():
            return
        self._newest[split] = dict(values)
        line = {"step": step, "epoch": epoch, "split": split, "time": time.time(), **values}
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            self._lost += 1
            if self._path.exists():
                os.truncate(self._path, size)  # not half a line
            print(
                f"warning: {self._path}: step {step} is not logged ({error.strerror})",
                file=sys.stderr,
                flush=True,
            )
        trackers.tell(self._trackers, step, split, values)

    def last(self, split: str) -> dict[str, float]:
        """The newest values of `split`; empty before the first, and if another process writes."""
        if split in self._newest:
            return self._newest[split]
        if not processes.is_first() or not self._path.exists():
            return {}
        lines = [json.loads(line) for line in self._path.read_text().splitlines()]
        newest = next((line for line in reversed(lines) if line["split"] == split), {})
        about = ("step", "epoch", "split", "time")
        return {name: value for name, value in newest.items() if name not in about}

    def check_complete(self) -> None:
        """Raise a ConfigError if a line of this session could not be written."""
        if self._lost:
            raise ConfigError(
                f"{self._path} lacks {self._lost} lines of this session, which did not fit on the"
                " disk; the checkpoints and result.json are whole"
            )

    def close(self) -> None:
        """End the trackers."""
        for tracker in self._trackers:
            tracker.close()
