"""Shards of users: their users and order, the events that a filter leaves, and the merge."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from gr_jax.data import ids
from gr_jax.data.beam import pieces, shards
from gr_jax.data.log import filters
from gr_jax.data.log.preparation import stable_order


def log(seed: int, events: int = 200, *, text: bool = False) -> pl.DataFrame:
    """Events with many ties, users 5..34 and a few popular items."""
    rng = np.random.default_rng(seed)
    user = pl.Series(rng.integers(5, 35, events)).cast(pl.String)
    columns = {
        "user": "u" + user if text else user,
        "item": pl.Series(rng.geometric(0.15, events)).cast(pl.String),
        "timestamp": rng.integers(0, 6, events) * 500,
        "rating": np.arange(
            events, dtype=np.float32
        ),  # tells events with the same user, item and time apart
    }
    return pl.DataFrame(columns)


def facts_of(events: pl.DataFrame) -> pieces.Facts:
    items = events.group_by(raw="item").agg(events=pl.len().cast(pl.Int64))
    integers = tuple(ids.are_integers(events[name].unique()) for name in ("user", "item"))
    return pieces.numbered(
        pieces.Facts(items=items, integers=integers, filled=frozenset(events.columns))
    )


def write(
    folder: Path, events: pl.DataFrame, number: int, *, blocks: int = 5, seed: int = 0
) -> list[Path]:
    """The shards of a log that comes in blocks, in a random order."""
    facts, groups = facts_of(events), {}
    size = -(-events.height // blocks)
    for i in np.random.default_rng(seed).permutation(blocks):
        for shard, part in shards.parts(events[i * size : (i + 1) * size], number):
            groups.setdefault(shard, []).append(((int(i), 0), part))
    for shard, some in groups.items():
        shards.write(folder, shard, some, facts, "ms", drop_repeats=False)
    return sorted(folder.glob("shard-*"))


def whole(events: pl.DataFrame) -> dict[str, np.ndarray]:
    """What one machine makes of the log."""
    (user, _), (item, _) = ids.encode(events["user"]), ids.encode(events["item"])
    order = stable_order(user, events["timestamp"].to_numpy())
    return {
        "item": (item + 1)[order],
        "timestamp": events["timestamp"].to_numpy()[order] // 1000,
        "rating": events["rating"].to_numpy()[order],
        "offsets": np.concatenate([[0], np.cumsum(np.bincount(user))]),
    }


def test_the_shard_of_a_user_never_changes():
    events = pl.DataFrame({"user": ["a", "17", "\u00e9", "a"], "n": range(4)})
    found = {row: shard for shard, part in shards.parts(events, 1000) for row in part["n"]}
    assert found == {0: 928, 1: 256, 2: 963, 3: 928}  # b2sum -l 64, little endian, modulo 1000


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("number", [1, 4, 50])
def test_merged_shards_are_the_whole_log_in_stable_order(tmp_path, monkeypatch, number, text):
    monkeypatch.setattr(shards, "_CHUNK", 16)  # some users have more events
    events = log(number, text=text)
    made, item_id = (
        write(tmp_path, events, number),
        np.arange(1, events["item"].n_unique() + 1, dtype=np.int32),
    )
    columns, users = shards.merge(made, item_id, tmp_path, integers=not text)
    assert users.to_list() == ids.encode(events["user"])[1].to_list()
    for name, column in whole(events).items():
        np.testing.assert_array_equal(columns[name], column, name)


def test_a_filter_leaves_the_same_events_in_shards(tmp_path):
    for seed in range(4):
        events, folder = log(seed, 150), tmp_path / str(seed)
        folder.mkdir()
        made = write(folder, events, 3)
        user, item = ids.encode(events["user"])[0], ids.encode(events["item"])[0]
        counts = np.bincount(item)
        for k in (2, 5, 7):
            kept = counts >= k
            stays = item[filters.one_pass(user, item, k=k)]
            (out := folder / f"{k}-one_pass").mkdir()
            left = sum(shards.keep(shard, out, kept, k=k, counted_once=True) for shard in made)
            np.testing.assert_array_equal(left, np.bincount(stays, minlength=len(counts)))
            while (
                fewer := sum(shards.item_counts(shard, kept, k=k) for shard in made) >= k
            ).sum() < kept.sum():
                kept = fewer
            core = filters.k_core(user, item, k=k)
            (out := folder / f"{k}-k_core").mkdir()
            left = sum(shards.keep(shard, out, kept, k=k, counted_once=False) for shard in made)
            np.testing.assert_array_equal(left, np.bincount(item[core], minlength=len(counts)))
            if core.any():
                columns, users = shards.merge(
                    sorted(out.iterdir()),
                    np.arange(1, len(counts) + 1, dtype=np.int32),
                    out,
                    integers=True,
                )
                np.testing.assert_array_equal(
                    columns["rating"], whole(events.filter(core))["rating"]
                )
                assert users.to_list() == ids.encode(events.filter(core)["user"])[1].to_list()


def test_a_shard_made_twice_is_the_first_one(tmp_path):
    first, again = log(0), log(1)
    made = write(tmp_path, first, 1)
    before = {file.name: file.read_bytes() for file in made[0].iterdir()}
    assert write(tmp_path, again, 1) == made
    assert {file.name: file.read_bytes() for file in made[0].iterdir()} == before
