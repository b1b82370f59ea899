"""A sweep as a table and as a picture."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

from gr_jax.training.console import table
from gr_jax.tuning.space import Dimension, Range
from gr_jax.tuning.trials import Outcome, Sweep, outcomes

PICTURE = "sweep.png"


def table_of(sweep: Sweep) -> str:
    """The trials, the best first."""
    fields = [dimension.field for dimension in sweep.dimensions]
    found = sorted(outcomes(sweep), key=lambda o: (o.state != "complete", -_or_least(o.score)))
    rows = [("trial", "validation", "epochs", "", *fields)]
    for one in found:
        score = f"{one.score:.4f}" if one.scores else ""
        texts = [one.settings.get(field, "") for field in fields]
        state = "" if one.state == "complete" else one.state
        rows.append((str(one.number), score, str(max(one.scores, default="")), state, *texts))
    return table(rows, left=(3,))


def draw(sweep: Sweep) -> Path | None:
    """Write the picture: validation by epoch, and by each field; None without matplotlib."""
    if not importlib.util.find_spec("matplotlib"):
        return None
    from matplotlib.figure import Figure

    found = [one for one in outcomes(sweep) if one.scores]
    panels = 1 + len(sweep.dimensions)
    figure = Figure(figsize=(3.6 * panels, 3.2), layout="constrained")
    curves, *others = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for one in found:
        style = {"complete": "-", "pruned": ":"}.get(one.state, "--")
        curves.plot(list(one.scores), list(one.scores.values()), style, linewidth=1)
    curves.set(xlabel="epochs (dotted: ended early)", ylabel="validation score")
    for axes, dimension in zip(others, sweep.dimensions, strict=True):
        _by_field(axes, dimension, found)
    file = sweep.folder / PICTURE
    figure.savefig(file, dpi=150)
    return file


def _by_field(axes: Any, dimension: Dimension, found: list[Outcome]) -> None:
    """The best validation of each trial by its value of a field."""
    for state, color in (("complete", "C0"), ("pruned", "0.7")):
        of_state = [one for one in found if one.state == state]
        texts = [one.settings[dimension.field] for one in of_state]
        place = float if isinstance(dimension, Range) else dimension.texts.index
        places = [place(text) for text in texts]
        axes.scatter(places, [one.score for one in of_state], c=color, s=18, label=state)
    if isinstance(dimension, Range):
        axes.set_xscale("log" if dimension.is_log else "linear")
    else:
        axes.set_xticks(range(len(dimension.texts)), dimension.texts)
    axes.set_xlabel(dimension.field)


def _or_least(score: float) -> float:
    return -math.inf if math.isnan(score) else score
