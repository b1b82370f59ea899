"""The search of a run without a config: what the rules chose, and settings near it, on validation.

What the rules chose is trained to its end. The others, each with a setting changed, go to a quarter
of its epochs, the better half of them to a half, and the best of these to its end (successive
halving). With a budget of b trainings 2 b settings begin, which take b trainings in all. The test
split is not looked at. Trials are ordinary runs, so a search that was interrupted goes on; at the
end the best of them becomes the run of the workdir.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from gr_jax.config import Config, files
from gr_jax.config.overrides import override_all
from gr_jax.files import write_whole
from gr_jax.reporting.records import metrics_lines
from gr_jax.training.console import say, table
from gr_jax.training.own_log import write_chosen
from gr_jax.training.train import train
from gr_jax.training.workdir import has_begun

FOLDER = "search"  # in the workdir, as long as the search goes on
FOUND = "search.json"  # in the workdir: what it found
ROUNDS = (0.25, 0.5, 1.0)  # of the epochs of the first trial
BEST = "ndcg@10"  # the metric of validation that compares trials


class Trial(NamedTuple):
    """A training that is compared with the others."""

    settings: dict[str, str]  # what differs from the config that the rules chose
    folder: Path

    @property
    def name(self) -> str:
        """As it is told."""
        shown = (f"{field}={text}" for field, text in self.settings.items())
        return " ".join(shown) or "as chosen"


def neighbours(config: Config) -> list[dict[str, str]]:
    """Settings near those of a config, the most promising first."""
    model, smoothing = config.model, config.loss.smoothing
    rates = lambda rate: {"model.dropout": f"{rate}", "model.input_dropout": f"{rate}"}
    if model.dropout > 0.3:
        held = rates(0.3) | ({"loss.smoothing": f"{smoothing / 2:g}"} if smoothing else {})
    else:
        held = rates(0.5)
    wide = {name: f"{2 * getattr(model, name)}" for name in ("width", "qk_width", "v_width")}
    return [
        {"model.temperature": f"{model.temperature * 2:g}"},
        held,
        {"model.temperature": f"{model.temperature / 2:g}"},
        {f"model.{name}": text for name, text in wide.items()},
        {"optimizer.learning_rate": f"{config.optimizer.learning_rate * 2:g}"},
        {"model.num_blocks": f"{2 * model.num_blocks}"},
        {"optimizer.learning_rate": f"{config.optimizer.learning_rate / 2:g}"},
    ]


def search(
    config: Config,
    workdir: Path,
    budget: float,
    *,
    fixed: Sequence[str] = (),
    settles: bool = False,
) -> tuple[Config, int]:
    """The best of a config and its neighbours, whose run is in `workdir` then; and an exit code.

    Args:
      config: what the rules chose. One of ranking or of a stream is not searched.
      workdir: of the run to be; one that has begun is left alone.
      budget: trainings that the neighbours may take together; 0 searches nothing.
      fixed: fields of the config that stay as they are.
      settles: take the best so far if it is interrupted; else the same call goes on.

    Returns:
      The config of the run, and 0, or 128 + signal if it was interrupted.
    """
    if (workdir / FOUND).exists() and (workdir / FOLDER).exists():  # interrupted at its end
        return _take_over(workdir), 0
    count = round(2 * budget)
    can_compare = not config.ranking.tasks and config.train.mode == "epochs"
    if has_begun(workdir) or not count or not can_compare:
        return config, 0
    free = [near for near in neighbours(config) if not set(near) & set(fixed)]
    trials = [
        Trial(settings, workdir / FOLDER / str(number))
        for number, settings in enumerate([{}, *free[:count]])
    ]

    code = _train_all(config, trials)
    trials = [trial for trial in trials if _scores(trial.folder)]
    if code and not (settles and trials):
        return config, code
    best = max(trials, key=_score)
    told = [
        {"settings": t.settings, "epochs": _scores(t.folder)[-1][0], f"valid {BEST}": _score(t)}
        for t in trials
    ]
    found = {"budget": budget, "trials": told, "best": str(best.folder.relative_to(workdir))}
    write_whole(workdir / FOUND, json.dumps(found, indent=2) + "\n")
    rows = [("search", "epochs", f"valid {BEST}")]
    rows += [(t.name, f"{_scores(t.folder)[-1][0]:g}", f"{_score(t):.4f}") for t in trials]
    say(f"{table(rows)}\nsearch  best: {best.name}")
    return _take_over(workdir), code


def _train_all(config: Config, trials: Sequence[Trial]) -> int:
    """Train the first to its end, and the others as far as they are worth it; the exit code."""
    first, *others = trials
    if code := _train(config, first):
        return code
    epochs = _scores(first.folder)[-1][0]
    for number, share in enumerate(ROUNDS):
        if number:
            others = sorted(others, key=_score, reverse=True)[: max(1, len(others) // 2)]
        for trial in others:
            if code := _train(config, trial, until=math.ceil(share * epochs)):
                return code
    return 0


def _train(config: Config, trial: Trial, *, until: int = 0) -> int:
    """Train a trial to an epoch or to its end; 0, or 128 + signal."""
    limit = until or math.inf
    if (scores := _scores(trial.folder)) and scores[-1][0] >= limit:
        return 0
    say(f"search  {trial.name}" + (f", to epoch {until}" if until else ""))
    code = train(
        override_all(config, trial.settings),
        trial.folder,
        judge=lambda epoch, score: epoch >= limit,
    )
    jax.clear_caches()  # no other trial has its programs
    return code


def _scores(folder: Path) -> list[tuple[float, float]]:
    """Epoch and score of the validations of a trial so far."""
    valid = (line for line in metrics_lines(folder) if line["split"] == "valid")
    return [(float(line["epoch"]), float(line[BEST])) for line in valid]


def _score(trial: Trial) -> float:
    return max(score for _, score in _scores(trial.folder))


def _take_over(workdir: Path) -> Config:
    """Make the best trial the run of the workdir, and remove the others; its config."""
    folder = workdir / json.loads((workdir / FOUND).read_text())["best"]
    if folder.exists():
        # The config first: with anything else of a run there, it is asked for.
        for path in sorted(folder.iterdir(), key=lambda path: path.name != "config.json"):
            if (workdir / path.name).is_dir():  # of a start that came to nothing
                shutil.rmtree(workdir / path.name)
            path.rename(workdir / path.name)
    shutil.rmtree(workdir / FOLDER, ignore_errors=True)
    config = files.read(workdir / "config.json")
    write_chosen(config, workdir, f"A search on validation found it; see {FOUND}.")
    return config
