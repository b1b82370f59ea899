"""The report of runs as one HTML page, put together from its parts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gr_jax.files import write_whole
from gr_jax.reporting import curves, learned, page, records, tables
from gr_jax.training.console import say

NEEDS_PLOTS = "curves need matplotlib: pip install 'gr-jax[plots]'"


def write(workdirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of these runs, and the figures as PNG into a folder with its name.

    Returns its path.

    Raises:
      ConfigError: a folder holds no run.
    """
    runs = records.read(workdirs)
    above = os.path.commonpath([run.workdir.absolute() for run in runs])
    out = out or (workdirs[0] if len(runs) == 1 else Path(above)) / "report.html"

    # The checkpoints
    found: dict[str, learned.Learned] = {}
    missing = []
    for run in runs:
        try:
            found[run.name] = learned.load(run.workdir)
        except ValueError as error:  # no checkpoint yet, or the log is elsewhere
            missing.append(page.note(f"{run.name}: {' '.join(str(error).split())}"))

    # Tables and figures
    parameters = {name: seen.parameters for name, seen in found.items()}
    figures = [page.note(NEEDS_PLOTS)]
    if curves.can_draw():
        biases = {name: seen.bias for name, seen in found.items()}
        figures = [page.figures(curves.draw(runs, biases, out.with_suffix("")))]
    results, groups = [], tables.kinds(runs)
    for group in groups:
        if len(groups) > 1:
            results.append(page.heading(tables.title(group[0])))
        results.append(page.table(tables.results(group)))
        for name, table in tables.further_results(group).items():
            results += [page.heading(name), page.table(table)]
    samples = []
    for name, seen in found.items():
        if len(runs) > 1:
            samples.append(page.heading(name))
        samples.append(page.users(seen.samples))

    # The page
    several = "Differences between the configs"
    configs = several if len(runs) > 1 else "Config, where it is not the default"
    sections = [
        ("Runs", [page.table(tables.facts(runs, parameters))]),
        ("Results", results),
        ("Curves", figures),
        ("Speed", [page.table(tables.speed(runs)), page.note(tables.SPEED)]),
        ("Recommendations", samples + missing),
        (configs, [page.table(tables.differences(runs))]),
    ]
    write_whole(out, page.page(f"gr_jax: {', '.join(run.name for run in runs)}", sections))
    return out


def write_after_training(workdir: Path) -> bool:
    """Write the report of a finished training; a failure is one line on stderr, and False."""
    try:
        out = write([workdir])
        say(f"report: {out}" + ("" if curves.can_draw() else f" ({NEEDS_PLOTS})"))
        return True
    except (Exception, KeyboardInterrupt) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        print(
            f"error: no report ({reason}); again: python -m gr_jax.report --workdir={workdir}",
            file=sys.stderr,
        )
        return False
