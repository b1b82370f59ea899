"""Checksums of the files of a folder, kept in it: Orbax reads a flipped bit in array data silently.

Several processes share the work: process i of n writes, and later checks, every n-th file.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from gr_jax.files import write_whole

_PREFIX = "checksums."
_BLOCK = 1 << 22


def write(folder: Path, index: int = 0, count: int = 1) -> None:
    """Write size and CRC-32 of share `index` of `count` to `checksums.<index>.json`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(_PREFIX))
    sums = {
        str(file.relative_to(folder)): [file.stat().st_size, _crc(file)]
        for file in files[index::count]
    }
    write_whole(folder / f"{_PREFIX}{index}.json", json.dumps(sums))


def first_damage(folder: Path, index: int = 0, count: int = 1) -> str:
    """Describe the first damaged file in share `index` of `count`; "" if all are intact.

    A folder without checksums, left by a kill between saving and `write`, passes.
    """
    sums = {}
    for path in sorted(folder.glob(f"{_PREFIX}*.json")):
        try:
            sums |= json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return f"{path.name} is damaged"
    for name in sorted(sums)[index::count]:
        try:
            size, crc = sums[name]
            file = folder / name
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, not {size}"
            if _crc(file) != crc:
                return f"{name} has another checksum"
        except (OSError, ValueError, TypeError) as error:
            return f"{name}: {error}"
    return ""


def _crc(file: Path) -> int:
    crc = 0
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
