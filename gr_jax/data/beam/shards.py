"""Shards of a log: the events of users of one hash value on disk, and their merge to a dataset.

A shard is a folder with `lengths.npy` (events of each of its users, int64), `users.parquet` (their
raw ids, in the order of the dataset), and the events by user, time and place in the file:
`item.npy` (int32 codes 0.. in the whole log), `timestamp.npy` (int64 seconds) and, where the log
has them, `rating.npy` and `action.npy`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Int32, Int64

from gr_jax.data import ids
from gr_jax.data.beam.pieces import Facts
from gr_jax.data.log import duplicates, filters, times
from gr_jax.data.log.layout import PER_SECOND
from gr_jax.data.log.preparation import stable_order

_CHUNK = 1 << 22  # events that `merge` holds at once, and those of one more user


def parts(events: pl.DataFrame, shards: int) -> list[tuple[int, pl.DataFrame]]:
    """(shard, its events in the same order) of some events, by a stable hash of the raw user id."""
    distinct = events["user"].unique()
    digests = (hashlib.blake2b(raw.encode(), digest_size=8).digest() for raw in distinct)
    shard = [int.from_bytes(digest, "little") % shards for digest in digests]
    shard_of = pl.DataFrame({"user": distinct, "shard": pl.Series(shard, dtype=pl.Int64)})
    with_shard = events.join(shard_of, on="user", how="left", maintain_order="left")
    groups = with_shard.partition_by("shard", maintain_order=True, include_key=False, as_dict=True)
    return [(int(key[0]), group) for key, group in groups.items()]


def write(
    folder: Path,
    shard: int,
    blocks: Iterable[tuple[tuple[int, int], pl.DataFrame]],
    facts: Facts,
    unit: str,
    *,
    drop_repeats: bool,
) -> dict[str, int]:
    """Write the shard whose events are `blocks`: (place of the piece, its events), in any order.

    Args:
      facts: of the whole log, `pieces.numbered`.
      unit: of the timestamps: s, ms, us or ns.
      drop_repeats: if true, repeats are left out (`duplicates`).

    Returns:
      The counts of repeats, all of which are in one shard with what they repeat.
    """
    events = times.concat([block for _, block in sorted(blocks, key=lambda block: block[0])])
    distinct = events["user"].unique()
    distinct = distinct.gather(ids.arg_order(distinct, integers=facts.integers[0]))
    user, item = ids.codes(events["user"], distinct), ids.codes(events["item"], facts.items["raw"])
    columns = {"timestamp": events["timestamp"].to_numpy()}
    if times.FRACTION in events.columns:
        columns[times.FRACTION] = events[times.FRACTION].to_numpy()
    if "rating" in facts.filled:
        columns["rating"] = events["rating"].fill_null(float("nan")).to_numpy()
    if "action" in events.columns:
        columns["action"] = events["action"].to_numpy()

    order = stable_order(user, columns["timestamp"], columns.get(times.FRACTION))
    user, item = user[order], item[order]
    columns = {name: column[order] for name, column in columns.items()}
    repeats = duplicates.find(user, item, columns)
    columns |= {"user": user, "item": item}
    if drop_repeats:
        columns = duplicates.without(repeats, columns)
    columns.pop(times.FRACTION, None)
    columns["timestamp"] = columns["timestamp"] // PER_SECOND[unit]
    lengths = np.bincount(columns.pop("user"), minlength=len(distinct))
    _save(folder / f"shard-{shard}", columns, lengths, distinct)
    return repeats.counts


def _save(
    target: Path, columns: dict[str, np.ndarray], lengths: np.ndarray, users: pl.Series
) -> None:
    """Write a shard that is complete or absent, also where two workers make the same one."""
    building = Path(tempfile.mkdtemp(prefix=".shard-", dir=target.parent))
    for name, column in (columns | {"lengths": lengths.astype(np.int64)}).items():
        np.save(building / f"{name}.npy", column)
    users.to_frame("raw").write_parquet(building / "users.parquet")
    with contextlib.suppress(OSError):
        os.rename(building, target)


def _columns(shard: Path) -> dict[str, np.ndarray]:
    """The mapped columns of the events of a shard."""
    names = ("item", "timestamp", "rating", "action")
    return {
        n: np.load(shard / f"{n}.npy", mmap_mode="r")
        for n in names
        if (shard / f"{n}.npy").exists()
    }


def item_counts(shard: Path, kept: Bool[np.ndarray, " X"], *, k: int) -> Int64[np.ndarray, " X"]:
    """Events of each item among those with a `kept` item, of users who have `k` of these."""
    item, keep, _ = _kept(shard, kept, k=k, counted_once=False)
    return np.bincount(item[keep], minlength=len(kept))


def _kept(
    shard: Path, kept: np.ndarray, *, k: int, counted_once: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items of a shard, which of its events stay if only `kept` items do, and their users."""
    item, lengths = np.load(shard / "item.npy"), np.load(shard / "lengths.npy")
    user, keep = np.repeat(np.arange(len(lengths)), lengths), kept[item]
    if counted_once:
        keep &= (lengths >= k)[user]
    return item, keep & filters.frequent(user, keep, k=k), user


def keep(
    shard: Path, folder: Path, kept: Bool[np.ndarray, " X"], *, k: int, counted_once: bool
) -> Int64[np.ndarray, " X"]:
    """Write the events that stay of a shard, if any, into `folder`, and count those of each item.

    Args:
      kept: items that have `k` events: in the whole log, or with the filter k_core among those of
        the core.
      counted_once: if true a user needs `k` events in the whole log too, as in the filter
        one_pass.
    """
    item, stays, user = _kept(shard, kept, k=k, counted_once=counted_once)
    lengths = np.bincount(user[stays], minlength=len(np.load(shard / "lengths.npy")))
    if stays.any():
        users = pl.read_parquet(shard / "users.parquet")["raw"]
        columns = {name: column[stays] for name, column in _columns(shard).items()}
        _save(folder / shard.name, columns, lengths[lengths > 0], users.filter(lengths > 0))
    return np.bincount(item[stays], minlength=len(kept))


def merge(
    shards: Sequence[Path], item_id: Int32[np.ndarray, " X"], folder: Path, *, integers: bool
) -> tuple[dict[str, np.ndarray], pl.Series]:
    """Columns of a dataset, mapped from new files in `folder`, and the raw ids of its users.

    Holds the ids of all users, and a few million events at a time: each shard and each file is
    gone through once.

    Args:
      item_id: of each item code.
      integers: if true the users are in numeric order.
    """
    names = [pl.read_parquet(shard / "users.parquet")["raw"] for shard in shards]
    raw_users = pl.concat(names)
    order = ids.arg_order(raw_users, integers=integers).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    ranks = np.split(rank, np.cumsum([len(some) for some in names])[:-1])  # of a shard: ascending
    lengths = [np.load(shard / "lengths.npy") for shard in shards]
    offsets = _offsets(np.concatenate(lengths)[order])
    parts = [(ranks[i], _offsets(lengths[i]), _columns(shard)) for i, shard in enumerate(shards)]
    out = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", column.dtype, (int(offsets[-1]),)
        )
        for name, column in parts[0][2].items()
    }
    for first, last in _spans(offsets):
        base, size = int(offsets[first]), int(offsets[last] - offsets[first])
        chunk = {name: np.empty(size, column.dtype) for name, column in out.items()}
        for ranks_here, starts, columns in parts:
            a, b = np.searchsorted(ranks_here, (first, last))
            start, stop = int(starts[a]), int(starts[b])
            # Of each user's events, from shard to chunk.
            shift = offsets[ranks_here[a:b]] - base - starts[a:b]
            to = np.repeat(shift, np.diff(starts[a : b + 1])) + np.arange(start, stop)
            for name, column in columns.items():
                chunk[name][to] = column[start:stop]
        chunk["item"] = item_id[chunk["item"]]
        for name, values in chunk.items():
            out[name][base : base + size] = values
    for column in out.values():
        column.flush()
    return out | {"offsets": offsets}, raw_users.gather(order)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])


def _spans(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Users first..last - 1 with no more events than a chunk together, or one user with more."""
    first, users = 0, len(offsets) - 1
    while first < users:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _CHUNK, "right")) - 1)
        yield first, last
        first = last
