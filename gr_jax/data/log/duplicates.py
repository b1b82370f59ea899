"""Events and users that a log has twice: they give a test its answers, and are counted.

A repeat has the user, the item and the full time of an earlier event, before times are cut to
seconds, wherever in the log they stand. Where its rating or its actions are others it is a change:
the event keeps its place and takes the last values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from gr_jax.config import ConfigError

_LEAST_COPY = 3  # events of a user whose copy is told: shorter histories may be alike by chance
_CHUNK = 1 << 22  # events that are hashed at once
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Repeats(NamedTuple):
    """Repeats among events in the order of user and time."""

    keep: Bool[np.ndarray, " E"]  # False where an event repeats an earlier one
    # events with a change, among those to keep, and the events that have their last values
    changed: Int[np.ndarray, " c"]
    last: Int[np.ndarray, " c"]
    counts: dict[str, int]  # exact repeats, and changes


def find(
    user: Int[np.ndarray, " E"],
    item: Int[np.ndarray, " E"],
    columns: Mapping[str, np.ndarray],
) -> Repeats:
    """The repeats among events that are sorted by user and time, and stable.

    Args:
      user, item: codes from 0.
      columns: timestamp and, where the log has them, fraction, rating and action.
    """
    size, names = len(user), ("timestamp", "fraction")
    nothing, keep = np.empty(0, np.int64), np.ones(size, bool)
    same = user[1:] == user[:-1]
    for name in names:
        if name in columns:
            same &= columns[name][1:] == columns[name][:-1]

    # Events of one item at one moment have the same key.
    tied = np.zeros(size, bool)
    tied[1:] |= same
    tied[:-1] |= same
    moment = np.cumsum(np.concatenate([[False], ~same])[:size])
    key = (moment * (int(item.max(initial=0)) + 1) + item)[tied]
    ordered = np.sort(key)  # ten times faster than argsort, and most logs have no repeats
    if not (ordered[1:] == ordered[:-1]).any():
        return Repeats(keep, nothing, nothing, {"repeats": 0, "changes": 0})

    # In `order` they stand together, in file order.
    sorting = np.argsort(key, kind="stable")
    order, key = np.flatnonzero(tied)[sorting], key[sorting]
    again = np.flatnonzero(key[1:] == key[:-1]) + 1
    keep[order[again]] = False
    differs = np.zeros(len(again), bool)
    for name in set(columns) - set(names):
        before, after = columns[name][order[again - 1]], columns[name][order[again]]
        differs |= (before != after) & ~((before != before) & (after != after))  # NaN is NaN
    # The first and the last event of each run of one item at one moment.
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    last = np.concatenate([first[1:], [len(key)]]) - 1
    changed = np.isin(first, first[np.searchsorted(first, again[differs], side="right") - 1])
    counts = {"repeats": int((~differs).sum()), "changes": int(differs.sum())}
    return Repeats(keep, order[first[changed]], order[last[changed]], counts)


def without(repeats: Repeats, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of the events to keep, with their last values."""
    taken = {}
    for name, column in columns.items():
        if len(repeats.last) and name in ("rating", "action"):
            column = column.copy()
            column[repeats.changed] = column[repeats.last]
        taken[name] = column if repeats.keep.all() else column[repeats.keep]
    return taken


def check(setting: str, counts: Mapping[str, int]) -> None:
    """Raise a ConfigError if a log with repeats is not to be used."""
    number = sum(counts.values())
    if setting == "error" and number:
        raise ConfigError(
            f"data.duplicates=error: {number:,} events have the user, item and time of another;"
            " data.duplicates=drop leaves them out"
        )


def copied_users(
    offsets: Int[np.ndarray, " B1"], item: Int[np.ndarray, " E"], time: Int[np.ndarray, " E"]
) -> int:
    """Users with the same items at the same times as an earlier user, of three events or more."""
    lengths = np.diff(offsets)
    hashes = np.empty(len(lengths), np.uint64)
    first = 0
    while first < len(lengths):
        fits = np.searchsorted(offsets, offsets[first] + _CHUNK, side="right") - 1
        last = max(first + 1, int(fits))
        events = slice(int(offsets[first]), int(offsets[last]))
        # A sum over the events of a user, so that events of one moment may stand in any order.
        mixed = item[events].astype(np.uint64) * _MIX + time[events].astype(np.uint64)
        mixed *= _MIX
        mixed ^= mixed >> np.uint64(29)
        mixed *= _MIX
        hashes[first:last] = np.add.reduceat(mixed, offsets[first:last] - events.start)
        first = last
    long = hashes[lengths >= _LEAST_COPY]
    return len(long) - len(np.unique(long))


def told(meta: Mapping) -> list[str]:
    """What meta.json says of events and users that are there twice, in words; empty if nothing."""
    counts = meta["duplicates"]
    setting = meta.get("made_from", {}).get("settings", {}).get("duplicates", "drop")
    done = "left out" if setting == "drop" else "kept (data.duplicates=keep)"
    last = "the last one counts" if setting == "drop" else done
    lines = {
        "repeats": f"events repeat the user, item and time of another: {done}",
        "changes": f"events differ from another only in rating or actions: {last}",
        "copied_users": (
            "users have the items and times of another user: kept; were sessions exported twice?"
        ),
    }
    return [f"{counts[name]:,} {line}" for name, line in lines.items() if counts.get(name)]
