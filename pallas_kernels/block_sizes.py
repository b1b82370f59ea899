"""The block-size table that ships with the package: which blocks each GPU kernel uses for which shape and device.

`python -m pallas_kernels.bench --tune` fills `block_sizes.json` on a GPU. For a shape or device without an entry the
kernel's own rule decides, which comes from the compiler's reports of registers, spills and shared memory and not from
a timing. The table holds no measured entry yet, so for now the rules decide everything.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).with_name("block_sizes.json")


class Blocks(NamedTuple):
    """Of the Triton kernels: tile of queries by keys, warps of a program, stages of the software pipeline."""

    query_block: int
    key_block: int
    num_warps: int
    num_stages: int


# Module with the rule of each implementation, `default_blocks(a, v, dtype)`.
_RULES = {
    "pallas_triton": "triton.attention",
    "jax_triton": "jax_triton.attention",
    "pallas_mosaic_gpu": "mosaic_gpu.attention",
}


def kind(implementation: str) -> type:
    """Returns the type of the blocks of an implementation."""
    if implementation == "pallas_mosaic_gpu":
        return importlib.import_module("pallas_kernels.mosaic_gpu.tiles").MosaicBlocks
    return Blocks


class Key(NamedTuple):
    """What an entry of the table is for; widths and lengths count up to the next power of two."""

    implementation: str
    qk_width: int  # A, at least 16
    v_width: int  # V, at least 16
    length: int  # L, tokens in a row, at least 64
    dtype: str  # of q, k and v
    device: str  # the device kind, such as NVIDIA H200


def key_of(implementation: str, a: int, v: int, length: int, dtype: str, device_kind: str) -> Key:
    """Returns the table key of a shape."""
    up = lambda n, least: max(least, 1 << (n - 1).bit_length())
    return Key(implementation, up(a, 16), up(v, 16), up(length, 64), dtype, device_kind)


def choose(implementation: str, a: int, v: int, length: int, dtype: str, device_kind: str) -> tuple:
    """Returns the blocks for a shape: measured on this kind of device if the table has them, else by the kernel's rule.

    a, v: head widths of q and v. length: L. dtype: name of the dtype of q, k and v.
    An entry of another length, the nearest, counts as measured; other widths, dtypes and devices do not.
    """
    key = key_of(implementation, a, v, length, dtype, device_kind)
    same = {
        k.length: blocks
        for k, blocks in _table(TABLE).items()
        if k._replace(length=key.length) == key
    }
    if same:
        return same[min(same, key=lambda n: (abs(n.bit_length() - key.length.bit_length()), n))]
    rules = importlib.import_module(f"pallas_kernels.{_RULES[implementation]}")
    return rules.default_blocks(a, v, dtype)


@functools.cache
def _table(path: Path) -> dict[Key, tuple]:
    """Returns the entries of a table file; read once, as every trace of the op asks for it."""
    return {
        Key(**entry["key"]): kind(entry["key"]["implementation"])(**entry["blocks"])
        for entry in json.loads(path.read_text())["entries"]
    }


def record(key: Key, blocks: Any, milliseconds: float, how: str, path: Path = TABLE) -> None:
    """Writes the fastest blocks of a shape into the table, in place of an older entry.

    milliseconds: of forward plus backward, kept for the reader. how: versions and command of the measurement.
    """
    assert isinstance(blocks, kind(key.implementation))
    entries = json.loads(path.read_text())["entries"] if path.exists() else []
    entries = [entry for entry in entries if Key(**entry["key"]) != key]
    entry = {
        "key": key._asdict(),
        "blocks": blocks._asdict(),
        "ms": round(milliseconds, 4),
        "how": how,
    }
    entries = sorted([*entries, entry], key=lambda e: tuple(e["key"].values()))
    lines = ",\n".join("  " + json.dumps(e) for e in entries)
    path.write_text('{"entries": [\n' + lines + "\n]}\n")
    _table.cache_clear()
