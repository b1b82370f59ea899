"""The figures of the report, drawn by matplotlib (the extra `[plots]`)."""

from __future__ import annotations

import importlib.util
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from gr_jax.reporting.learned import Bias
from gr_jax.reporting.records import Json, Points, Record
from gr_jax.reporting.tables import kinds, title

MAX_POINTS = 400  # of a curve: means of neighbours beyond
SPANS = {
    "0": 0.3,
    "1 s": 1,
    "1 min": 60,
    "1 h": 3600,
    "1 day": 86400,
    "1 month": 2629746,
    "1 year": 31556952,
}
GROUPS = {  # by the names of their metrics: what distinguishes them
    "history": "events of the user before",
    "popularity": "popularity of the item that came",
}
STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
}


@dataclass(frozen=True)
class Figure:
    """A drawing with its title and caption."""

    name: str  # of its file
    title: str
    caption: str
    svg: str


class Drawing:
    """Panels side by side, three in a row, all with the same runs in the same colours."""

    def __init__(self, name: str, panels: int):
        from matplotlib.figure import Figure as Canvas  # pyright: ignore[reportMissingImports]

        columns = min(panels, 3)
        rows = -(-panels // columns)
        self.name = name
        self._canvas = Canvas(figsize=(3.6 * columns, 2.7 * rows), layout="constrained")
        grid = self._canvas.subplots(rows, columns, squeeze=False).flatten()
        for unused in grid[panels:]:
            unused.remove()
        self.panels = list(grid[:panels])

    def finish(self, folder: Path, title: str, caption: str) -> Figure:
        """The figure as SVG; also written as NAME.png into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._canvas.savefig(folder / f"{self.name}.png", dpi=130)
        text = io.StringIO()
        self._canvas.savefig(text, format="svg", metadata={"Date": None})
        return Figure(self.name, title, caption, text.getvalue()[text.getvalue().index("<svg") :])


def can_draw() -> bool:
    """True if matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(records: Sequence[Record], biases: Mapping[str, Bias], folder: Path) -> list[Figure]:
    """All figures for which these runs have data, each also a PNG in `folder`.

    biases: by the name of the run.
    """
    import matplotlib  # pyright: ignore[reportMissingImports]

    figures: list[Figure | None] = []
    # The salt makes the identities inside an SVG unique to a figure, and the same in each report.
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "report"}):
        colour = {record.name: f"C{i % 10}" for i, record in enumerate(records)}
        for number, group in enumerate(kinds(records)):
            suffix = f"-{number + 1}" if number else ""
            figures += [
                _loss(group, colour, folder, suffix),
                _by_group(group, colour, folder, suffix),
                _metrics(group, colour, folder, suffix),
            ]
        figures.append(_speed(records, colour, folder))
        for number, (name, bias) in enumerate(biases.items()):
            figures.append(_bias(name, bias, folder, f"-{number + 1}" if number else ""))
    return [figure for figure in figures if figure is not None]


def thinned(points: Points) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """At most MAX_POINTS points: means of equally many neighbours."""
    steps, values = points
    if len(steps) <= MAX_POINTS:
        return points
    edges = np.arange(MAX_POINTS) * len(steps) // MAX_POINTS
    counts = np.diff(np.append(edges, len(steps)))
    return np.add.reduceat(steps, edges) / counts, np.add.reduceat(values, edges) / counts


def _legend(panel: Any, records: Sequence[Record]) -> None:
    """Name the runs, if there are several."""
    if len(records) > 1:
        panel.legend()


def _loss(
    records: Sequence[Record], colour: Mapping[str, str], folder: Path, suffix: str
) -> Figure | None:
    losses = {}  # runs by the loss that they can be compared in
    for record in records:
        losses.setdefault("" if record.tasks else record.config.loss.kind, []).append(record)
    losses = {
        kind: [r for r in runs if len(r.points("train", "loss")[0])]
        for kind, runs in losses.items()
    }
    losses = {kind: runs for kind, runs in losses.items() if runs}
    if not losses:
        return None
    drawing = Drawing(f"loss{suffix}", len(losses))
    for panel, (kind, runs) in zip(drawing.panels, losses.items(), strict=True):
        for run in runs:
            panel.plot(
                *thinned(run.points("train", "loss")),
                color=colour[run.name],
                label=run.name,
                lw=1.2,
            )
        panel.set(title=f"training loss{f' ({kind})' if kind else ''}", xlabel="step")
        _legend(panel, runs)
    return drawing.finish(
        folder, f"Loss, {title(records[0])}", "Means between two reports of the training."
    )


def _metrics(
    records: Sequence[Record], colour: Mapping[str, str], folder: Path, suffix: str
) -> Figure | None:
    names = ("hr@10", "ndcg@10", "log_perplexity")
    if records[0].tasks:
        kinds_of = {True: ("mse",), False: ("ne", "auc")}
        names = tuple(
            f"{kind}/{task}" for task in records[0].tasks for kind in kinds_of[task == "rating"]
        )
    names = [
        name for name in names if any(len(record.points("valid", name)[0]) for record in records)
    ]
    if not names:
        return None
    drawing = Drawing(f"metrics{suffix}", len(names))
    for panel, name in zip(drawing.panels, names, strict=True):
        for record in records:
            steps, values = record.points("valid", name)
            panel.plot(
                steps,
                values,
                color=colour[record.name],
                label=record.name,
                lw=1.2,
                marker=".",
                ms=3,
            )
            best = (record.result or {}).get("best_step")
            at = np.flatnonzero(steps == best)
            panel.plot(steps[at], values[at], "o", color=colour[record.name], ms=7, mfc="none")
        panel.set(title=name, xlabel="step")
    _legend(drawing.panels[0], records)
    caption = "On the validation part; a circle marks the checkpoint that was tested."
    return drawing.finish(folder, f"Validation, {title(records[0])}", caption)


def _by_group(
    records: Sequence[Record], colour: Mapping[str, str], folder: Path, suffix: str
) -> Figure | None:
    """The metrics of the groups of users or labels that are evaluated apart."""
    metrics = [f"ne/{task}" for task in records[0].tasks if task != "rating"] or ["hr@10"]
    panels = {}
    for metric, kind in itertools.product(metrics, GROUPS):
        found = {r.name: _groups(r.evaluated[1], f"{metric}/{kind}_") for r in records}
        if any(found.values()):
            panels[metric, kind] = found
    if not panels:
        return None
    drawing = Drawing(f"history{suffix}", len(panels))
    for panel, ((metric, kind), found) in zip(drawing.panels, panels.items(), strict=True):
        runs = [r for r in records if found[r.name]]
        groups = sorted({b for r in runs for b in found[r.name]}, key=_first_of)
        width = 0.8 / len(runs)
        for i, run in enumerate(runs):
            values = found[run.name]
            at = [
                n + (i - (len(runs) - 1) / 2) * width for n, b in enumerate(groups) if b in values
            ]
            label = run.name if run.result is not None else f"{run.name}, {run.evaluated[0]}"
            bars = [values[b] for b in groups if b in values]
            panel.bar(at, bars, width, color=colour[run.name], label=label)
        queries = _groups(runs[0].evaluated[1], f"queries/{kind}_")
        names = [f"{b}\n{queries[b]:,.0f}" if b in queries else b for b in groups]
        panel.set_xticks(range(len(groups)), names, fontsize=6 if len(groups) > 5 else 8)
        panel.grid(axis="x", visible=False)
        panel.set(title=metric, xlabel=GROUPS[kind])
        if len(records) > 1:  # room for the legend
            panel.set_ylim(top=panel.get_ylim()[1] * (1 + 0.1 * len(runs)))
    _legend(drawing.panels[0], records)
    caption = "On the test part, or on the last validation of a run that is not finished."
    about = "By length of the history" + " and by popularity" * (not records[0].tasks)
    if records[0].tasks:
        caption += " NE of a bucket is relative to the rate of the bucket; lower is better."
    else:
        caption += " Under each group the users in it."
    return drawing.finish(folder, f"{about}, {title(records[0])}", caption)


def _groups(values: Json, start: str) -> dict[str, float]:
    """Values of the names that begin so, by what follows."""
    return {
        name.removeprefix(start): value for name, value in values.items() if name.startswith(start)
    }


def _first_of(group: str) -> int:
    """A number that sorts the groups of a kind."""
    parts = ("head", "mid", "tail")
    return parts.index(group) if group in parts else int(group.rstrip("+").partition("-")[0])


def _speed(records: Sequence[Record], colour: Mapping[str, str], folder: Path) -> Figure | None:
    names = {"users_per_second": "users/s", "tokens_per_second": "tokens/s"}
    if not any(len(record.points("train", name)[0]) for record in records for name in names):
        return None
    drawing = Drawing("speed", len(names))
    for panel, (name, unit) in zip(drawing.panels, names.items(), strict=True):
        for record in records:
            panel.plot(
                *thinned(record.points("train", name)),
                color=colour[record.name],
                label=record.name,
                lw=1.2,
            )
        panel.set(title=unit, xlabel="step")
        panel.set_ylim(bottom=0)
    _legend(drawing.panels[0], records)
    return drawing.finish(
        folder, "Speed of training", "Compilation, validation and saving are not counted."
    )


def _bias(name: str, bias: Bias, folder: Path, suffix: str) -> Figure | None:
    tables = [table for table in (bias.position, bias.time) if table is not None]
    if not tables:
        return None
    import matplotlib  # pyright: ignore[reportMissingImports]

    drawing, blocks = Drawing(f"bias{suffix}", len(tables)), len(tables[0])
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, blocks))
    panels = iter(drawing.panels)
    if bias.position is not None:
        panel = next(panels)
        _lines(panel, np.arange(bias.position.shape[1]), bias.position, shades)
        panel.set(title="bias by position", xlabel="distance in tokens, 0 = itself")
        panel.set_xscale("symlog", linthresh=1)
        ticks = [t for t in (0, 1, 10, 100, 1000, 10_000) if t < bias.position.shape[1]]
        panel.set_xticks(ticks, map(str, ticks))
    if bias.time is not None:
        panel = next(panels)
        _lines(panel, np.maximum(bias.seconds, SPANS["0"]), bias.time, shades)
        panel.set(title="bias by elapsed time", xscale="log")
        ticks = {
            text: seconds
            for text, seconds in SPANS.items()
            if seconds <= bias.seconds.max(initial=1)
        }
        panel.set_xticks(list(ticks.values()), list(ticks))
        panel.tick_params(axis="x", labelrotation=40)
        panel.minorticks_off()
    drawing.panels[0].legend()
    caption = (
        "Added to each q·k before the SiLU: higher means more attention. A line for each block."
    )
    return drawing.finish(folder, f"Attention bias as learned, {name}", caption)


def _lines(
    panel: Any, x: Shaped[np.ndarray, " n"], table: Float[np.ndarray, "blocks n"], shades: Any
) -> None:
    for number, (row, shade) in enumerate(zip(table, shades, strict=True)):
        panel.plot(x, row, color=shade, lw=1.2, label=f"block {number + 1}")
