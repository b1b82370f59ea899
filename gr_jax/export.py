"""Write a model's program and parameters to its workdir, to be served without its code.

    python -m gr_jax.export --workdir=runs/ml_1m
    python -m gr_jax.serve --workdir=runs/ml_1m --exported

The program is portable StableHLO (`jax.export`) for CPU, NVIDIA GPU and TPU, with any number of
rows.
"""

from __future__ import annotations

from pathlib import Path

from gr_jax import cli
from gr_jax.serving.export.write import export
from gr_jax.training.console import say


def main(argv: list[str]) -> int:
    """Export the run that the command line names."""
    flags: dict[str, cli.Flag] = {
        "workdir": (Path, cli.REQUIRED, "folder of a trained run"),
    }
    args = cli.parse(argv, doc=__doc__, flags=flags, config="none")
    folder = export(args.workdir)
    size = sum(file.stat().st_size for file in folder.iterdir())
    command = f"python -m gr_jax.serve --workdir={args.workdir} --exported"
    say(f"{folder}: {size / 1e6:.1f} MB; next: {command}")
    return 0


if __name__ == "__main__":
    cli.run(main)
