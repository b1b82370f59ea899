"""Which rows of a batch a process holds. Apart from the pipeline: a step needs this where Grain is not installed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """The part of every batch that a process holds: of `count` equal parts the one with number `index`."""

    index: int = 0
    count: int = 1
    # Empty rows fill a batch up to a multiple of this, the `data` axis of the mesh; it is itself a
    # multiple of `count`.
    device_multiple: int = 1

    def of(self, batch_rows: int) -> tuple[int, int, int]:
        """First row of the part, the row after its last that is not filled up, and its size with the empty ones."""
        size = -(-batch_rows // self.device_multiple) * self.device_multiple // self.count
        first = min(self.index * size, batch_rows)
        return first, min(first + size, batch_rows), size


WHOLE = Share()
