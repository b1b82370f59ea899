"""Writes a trained run's program and parameters to its workdir, to be served without the model's code.

    python -m gr_jax.export --workdir=runs/ml_1m
    python -m gr_jax.serve --workdir=runs/ml_1m --exported

The program is portable StableHLO (`jax.export`) for CPU, NVIDIA GPU and TPU, with any number of rows.
"""

from __future__ import annotations

from pathlib import Path

from gr_jax import cli
from gr_jax.serving.export import export
from gr_jax.training.console import say


def main(argv: list[str]) -> int:
    """Exports the run that the command line names."""
    flags: dict[str, cli.Flag] = {
        "workdir": (Path, cli.REQUIRED, "folder of a trained run"),
        "prepared": (
            str,
            "",
            "folder of the prepared dataset, where it is not where the run had it",
        ),
    }
    args = cli.parse(argv, doc=__doc__, flags=flags, config="none")
    folder = export(args.workdir, prepared=args.prepared)
    size = sum(file.stat().st_size for file in folder.iterdir())
    say(
        f"{folder}: {size / 1e6:.1f} MB; next: python -m gr_jax.serve --workdir={args.workdir} --exported"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
