"""Raw ids -> entries of a table by independent hashes, the same in every run; and collisions.

An id that prints as a 64-bit integer is that integer, any other text the FNV-1a hash of its UTF-8
bytes; what an id hashes to depends on no other id. Rows come from splitmix64 (Steele, Lea and
Flood 2014, "Fast splittable pseudorandom number generators"), a bijection of 64-bit numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Int, Int32, UInt64

from gr_jax.config import VocabularyConfig
from gr_jax.data import ids

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FNV_OFFSET, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


def splitmix64(x: UInt64[np.ndarray, "*T"]) -> UInt64[np.ndarray, "*T"]:
    """The output of the generator in state x: every bit of x changes half of the bits."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def fnv1a(text: pl.Series) -> UInt64[np.ndarray, " n"]:
    """FNV-1a of the UTF-8 bytes of each string."""
    length = text.str.len_bytes().to_numpy().astype(np.int64)
    flat = np.frombuffer("".join(text.to_list()).encode(), np.uint8).astype(np.uint64)
    longest_first = np.argsort(-length, kind="stable")
    start, length = (np.cumsum(length) - length)[longest_first], length[longest_first]
    hashed = np.full(len(text), _FNV_OFFSET)
    for place in range(int(length.max(initial=0))):
        live = np.searchsorted(-length, -place)  # strings with a byte at this place
        hashed[:live] = (hashed[:live] ^ flat[start[:live] + place]) * _FNV_PRIME
    back = np.empty_like(hashed)
    back[longest_first] = hashed
    return back


def keys(raw: pl.Series) -> UInt64[np.ndarray, " n"]:
    """64 bits of each raw id: a number as it is, in two's complement, and text by `fnv1a`."""
    is_number = ids.prints_as_integer(raw).to_numpy()
    found = raw.cast(pl.Int64, strict=False).fill_null(0).to_numpy().astype(np.uint64)
    found[~is_number] = fnv1a(raw.filter(~is_number))
    return found


def hashed_rows(
    key: UInt64[np.ndarray, " n"], *, hashes: int, rows: int, seed: int
) -> Int32[np.ndarray, "n hashes"]:
    """`hashes` row numbers from 1 to `rows` for each key, each by a hash of its own."""
    salt = splitmix64((np.uint64(seed) << np.uint64(32)) + np.arange(hashes, dtype=np.uint64))
    mixed = splitmix64(splitmix64(key)[:, None] ^ salt)
    return (1 + mixed % np.uint64(rows)).astype(np.int32)


def rows_of_items(
    raw: pl.Series, config: VocabularyConfig, *, seed: int
) -> tuple[Int32[np.ndarray, "X k"], int]:
    """The rows that the hashes of raw ids choose, and the number of rows to choose from."""
    rows = config.rows if config.kind == "hashed" else config.shared_rows
    return hashed_rows(keys(raw), hashes=config.hashes, rows=rows, seed=seed), rows


class Collisions(NamedTuple):
    """Shares of items; expected ones are those of hashes that are independent and uniform."""

    one: float  # that have at least one row which another item has too
    one_expected: float
    all: float  # that have the same rows, and so the same vector, as another item
    all_expected: float


def collisions(row: Int[np.ndarray, "n hashes"], rows: int) -> Collisions:
    """How the items whose rows these are, numbers from 1 to `rows`, collide."""
    count, hashes = row.shape
    ordered = np.sort(row, axis=1)
    first = np.concatenate([np.ones((count, 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    items_of_row = np.bincount(ordered[first], minlength=rows + 1)
    shared = ((items_of_row[ordered] > 1) & first).any(axis=1)
    _, group, size = np.unique(ordered, axis=0, return_inverse=True, return_counts=True)
    others = count - 1
    # An item's own hashes may meet too, with probability k (k - 1) / 2 rows: left out of both
    # formulas.
    one = -math.expm1(others * hashes * math.log1p(-min(hashes / rows, 1 - 1e-12)))
    same = min(math.factorial(hashes) / rows**hashes, 1 - 1e-12)
    return Collisions(
        float(shared.mean()),
        one,
        float((size[group.reshape(-1)] > 1).mean()),
        -math.expm1(others * math.log1p(-same)),
    )
