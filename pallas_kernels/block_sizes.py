"""The block sizes that ship with the package: measured ones by shape and device.

`python -m pallas_kernels.bench --tune` fills `block_sizes.json` on a GPU. It holds no entry yet:
for a shape or device without one the kernel's own `default_blocks` decides, which comes from the
compiler's reports of registers, spills and shared memory and not from a timing.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from pallas_kernels import dispatch

TABLE = Path(__file__).with_name("block_sizes.json")


class Blocks(NamedTuple):
    """Block sizes of the Triton kernels.

    Attributes:
      query_block, key_block: queries and keys of a tile.
      num_warps: of a program.
      num_stages: of the software pipeline.
    """

    query_block: int
    key_block: int
    num_warps: int
    num_stages: int


class Key(NamedTuple):
    """The shape of an entry of the table; widths and lengths count up to the next power of two."""

    implementation: str
    qk_width: int  # A, at least 16
    v_width: int  # V, at least 16
    length: int  # L, tokens in a row, at least 64
    dtype: str  # of q, k and v
    device: str  # the device kind, such as NVIDIA H200


def key_of(implementation: str, q: jax.Array | np.ndarray, v: jax.Array | np.ndarray) -> Key:
    """The key of the shapes and the dtype of q and v, [R, L, H, ..], on the current device."""
    up = lambda n, least: max(least, 1 << (n - 1).bit_length())
    widths = up(q.shape[3], 16), up(v.shape[3], 16)
    kind = dispatch.current_device().kind
    return Key(implementation, *widths, up(q.shape[1], 64), v.dtype.name, kind)


def measured(key: Key) -> dict[str, int] | None:
    """The fields of the fastest blocks that were measured for a shape; None = there are none.

    An entry of another length, the nearest, counts as measured; other widths, dtypes and devices do
    not.
    """
    same = {
        found.length: blocks
        for found, blocks in _table(TABLE).items()
        if found._replace(length=key.length) == key
    }
    apart = lambda n: (abs(n.bit_length() - key.length.bit_length()), n)
    return same[min(same, key=apart)] if same else None


@functools.cache
def _table(path: Path) -> dict[Key, dict[str, int]]:
    """The entries of a table file; read once, as every trace of the op asks for it."""
    entries = json.loads(path.read_text())["entries"]
    return {Key(**entry["key"]): entry["blocks"] for entry in entries}


def record(key: Key, blocks: dict[str, int], milliseconds: float, how: str, path: Path) -> None:
    """Write the fastest blocks of a shape into a table, in place of an older entry.

    milliseconds: of forward plus backward, kept for the reader.
    how: versions and command of the measurement.
    """
    entries = json.loads(path.read_text())["entries"] if path.exists() else []
    entries = [entry for entry in entries if Key(**entry["key"]) != key]
    about = {"ms": round(milliseconds, 4), "how": how}
    entries.append({"key": key._asdict(), "blocks": blocks} | about)
    entries.sort(key=lambda entry: tuple(entry["key"].values()))
    lines = ",\n".join("  " + json.dumps(entry) for entry in entries)
    path.write_text('{"entries": [\n' + lines + "\n]}\n")
    _table.cache_clear()
