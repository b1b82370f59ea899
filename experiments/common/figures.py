"""matplotlib where it is installed (`pip install 'gr-jax[plots]'`), drawing to files."""

from __future__ import annotations

from typing import Any


def pyplot() -> Any:
    """`matplotlib.pyplot`, without a screen.

    Raises:
      SystemExit: matplotlib is not installed.
    """
    try:
        import matplotlib  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SystemExit("a figure needs matplotlib: pip install 'gr-jax[plots]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot  # pyright: ignore[reportMissingImports]

    return matplotlib.pyplot
