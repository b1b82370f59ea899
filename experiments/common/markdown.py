"""Tables in Markdown, and the numbers in their cells."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence


def figure(value: float) -> str:
    """A metric as .3343, or 1.0034."""
    return re.sub(r"^0", "", f"{value:.4f}")


def spread(values: Sequence[float]) -> str:
    """Mean as a figure and, of two values and more, the standard deviation."""
    mean = figure(statistics.mean(values))
    return mean if len(values) < 2 else f"{mean} ± {figure(statistics.stdev(values))}"


def bold_best(
    columns: Sequence[Sequence[float]], cells: list[list[str]], *, lowest: Sequence[bool]
) -> None:
    """Make the best figure of each column bold; `columns` are the values behind `cells`."""
    for values, texts, low in zip(columns, cells, lowest, strict=True):
        best = (min if low else max)(range(len(values)), key=values.__getitem__)
        texts[best] = re.sub(r"^[\d.]+", r"**\g<0>**", texts[best])


def markdown(head: str, rows: Iterable[Sequence[str]]) -> str:
    """A table; `head` is the names of its columns with ` | ` between them."""
    columns = head.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(re.sub(r" +", " ", f"| {' | '.join(line)} |") + "\n" for line in lines)
