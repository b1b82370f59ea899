"""The report of runs as one HTML page, put together from its parts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gr_jax.reporting import curves, learned, page, records, tables
from gr_jax.training.console import say

NEEDS_PLOTS = "curves need matplotlib: pip install 'gr-jax[plots]'"


def write(workdirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of runs, and its figures as PNG into a folder beside it; return its path.

    Raises:
      ConfigError: a folder holds no run.
    """
    runs = records.read(workdirs)
    above = os.path.commonpath([run.workdir.absolute() for run in runs])
    out = out or (workdirs[0] if len(runs) == 1 else Path(above)) / "report.html"

    looked, missing = {}, []
    for run in runs:
        try:
            looked[run.name] = learned.look(run.workdir)
        except ValueError as error:  # no checkpoint yet, or the log is elsewhere
            missing.append(page.note(f"{run.name}: {' '.join(str(error).split())}"))

    figures = []
    if curves.can_draw():
        biases = {name: found.bias for name, found in looked.items()}
        figures = [page.figures(curves.draw(runs, biases, out.with_suffix("")))]

    different = "Config, where it is not the default"
    if len(runs) > 1:
        different = "Differences between the configs"
    groups, results = tables.kinds(runs), []
    for group in groups:
        results += [page.heading(tables.title(group[0]))] * (len(groups) > 1) + [
            page.table(tables.results(group))
        ]

    samples = []
    for name, found in looked.items():
        samples += [page.heading(name)] * (len(runs) > 1) + [page.users(found.samples)]

    facts = tables.facts(runs, {name: found.parameters for name, found in looked.items()})
    sections = [
        ("Runs", [page.table(facts)]),
        ("Results", results),
        ("Curves", figures or [page.note(NEEDS_PLOTS)]),
        ("Speed", [page.table(tables.speed(runs)), page.note(tables.SPEED)]),
        ("Recommendations", samples + missing),
        (different, [page.table(tables.differences(runs))]),
    ]
    out.write_text(page.page(f"gr_jax: {', '.join(run.name for run in runs)}", sections))
    return out


def write_after_training(workdir: Path) -> None:
    """Write the report of a finished training; a failure is one line, never an error."""
    try:
        out = write([workdir])
        say(f"report: {out}" + ("" if curves.can_draw() else f" ({NEEDS_PLOTS})"))
    except (Exception, KeyboardInterrupt) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        print(
            f"warning: no report ({reason}); again: python -m gr_jax.report --workdir={workdir}",
            file=sys.stderr,
        )
