"""Work on the host while the device is busy with the next batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def one_behind(results: Iterable[T]) -> Iterator[T]:
    """Yield the same results, each once the next is under way.

    So the device works while the host packs.
    """
    before = []
    for result in results:
        yield from before
        before = [result]
    yield from before
