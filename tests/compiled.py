"""What a compiled program moves between devices."""

import math
import re

COLLECTIVE = (
    r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)


def collectives(compiled) -> list[tuple[str, int]]:
    """(kind, elements of its largest result) of every collective of a compiled jax function."""
    found = []
    for results, kind, _ in re.findall(COLLECTIVE, compiled.as_text()):
        shapes = re.findall(r"\[([\d,]*)\]", results)
        found.append(
            (kind, max(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes))
        )
    return found
