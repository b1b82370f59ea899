"""One HTML page on trained or running runs, side by side: results, curves, speed, what was learned, configs.

    python -m gr_jax.report --workdir=runs/ml_1m
    python -m gr_jax.report runs/ml_1m runs/ml_1m-sasrec --out=compared.html

Training writes it too, when it is over. The figures, also written as PNG files into a folder beside the page, need
matplotlib: pip install 'gr-jax[plots]'; without it the page has the tables and the samples.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gr_jax import cli
from gr_jax.reporting import curves, learned, page, records, tables
from gr_jax.training.metrics_log import say

NEEDS_PLOTS = "curves need matplotlib: pip install 'gr-jax[plots]'"


def main(argv: list[str]) -> int:
    """Writes the report of the runs that the command line names."""
    flags: dict[str, cli.Flag] = {
        "workdir": ([Path], cli.REQUIRED, "folder of a run; give several to compare them"),
        "out": (
            Path,
            None,
            "the page; default report.html in the folder of the run, or above those of several",
        ),
    }
    args = cli.parse(argv, doc=__doc__, flags=flags, config="none")
    say(f"report: {write(args.workdir, args.out)}")
    return 0


def write(workdirs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the report of these runs, and the figures as PNG into a folder with its name; returns its path.

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
        except (
            ValueError
        ) as error:  # no checkpoint yet, or the log is elsewhere: the rest can be told
            missing.append(page.note(f"{run.name}: {' '.join(str(error).split())}"))
    figures = []
    if curves.can_draw():
        biases = {name: found.bias for name, found in looked.items()}
        figures = [page.figures(curves.draw(runs, biases, out.with_suffix("")))]
    different = (
        "Differences between the configs"
        if len(runs) > 1
        else "Config, where it is not the default"
    )
    groups, results = tables.kinds(runs), []
    for group in groups:
        results += [page.heading(tables.title(group[0]))] * (len(groups) > 1) + [
            page.table(tables.results(group))
        ]
    samples = []
    for name, found in looked.items():
        samples += [page.heading(name)] * (len(runs) > 1) + [page.users(found.samples)]
    sections = [
        (
            "Runs",
            [
                page.table(
                    tables.facts(runs, {name: found.parameters for name, found in looked.items()})
                )
            ],
        ),
        ("Results", results),
        ("Curves", figures or [page.note(NEEDS_PLOTS)]),
        ("Speed", [page.table(tables.speed(runs)), page.note(tables.SPEED)]),
        ("Recommendations", samples + missing),
        (different, [page.table(tables.differences(runs))]),
    ]
    out.write_text(page.page(f"gr_jax: {', '.join(run.name for run in runs)}", sections))
    return out


def write_after_training(workdir: Path) -> None:
    """Writes the report of a finished training, which never fails for it: a failure is one line."""
    try:
        out = write([workdir])
        say(f"report: {out}" + ("" if curves.can_draw() else f" ({NEEDS_PLOTS})"))
    except (Exception, KeyboardInterrupt) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        print(
            f"warning: no report ({reason}); again: python -m gr_jax.report --workdir={workdir}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    cli.run(main)
