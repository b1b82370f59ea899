"""One HTML page on runs, trained or training: results, curves, speed, samples, configs.

    python -m gr_jax.report --workdir=runs/ml_1m
    python -m gr_jax.report runs/ml_1m runs/ml_1m-sasrec --out=compared.html

Training ends by writing it. The figures, also written as PNG files into a folder beside the page,
need matplotlib: pip install 'gr-jax[plots]'; without it the page has the tables and the samples.
"""

from __future__ import annotations

from pathlib import Path

from gr_jax import cli
from gr_jax.reporting.report import write
from gr_jax.training.console import say


def main(argv: list[str]) -> int:
    """Write the report of the runs on the command line."""
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


if __name__ == "__main__":
    cli.run(main)
