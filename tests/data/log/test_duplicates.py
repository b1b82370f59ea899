"""What a log has twice is counted and told, and by default does not give a test its answers."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr_jax import prepare as command
from gr_jax.config import Config, ConfigError, DataConfig
from gr_jax.data.dataset import Dataset
from gr_jax.data.log import duplicates
from gr_jax.data.log.preparation import prepare

HEADER = "user_id,item_id,timestamp,stars\n"


def made(folder: Path, lines: list[str], *, files: int = 1, **fields) -> Dataset:
    (folder / "raw").mkdir(parents=True)
    for i in range(files):
        (folder / "raw" / f"{i}.csv").write_text(
            HEADER + "".join(f"{x}\n" for x in lines[i::files])
        )
    place = {"path": str(folder / "raw"), "prepared": str(folder / "prepared")}
    return prepare(DataConfig(**place, rating_column="stars", **fields))


def told(dataset: Dataset) -> dict[str, int]:
    return dataset.meta["duplicates"]


def log(seed: int = 0, users: int = 30, events: int = 12) -> list[str]:
    """Lines of users with events at times of their own."""
    rng = np.random.default_rng(seed)
    return [
        f"u{user},i{rng.integers(50)},{10**9 + 1000 * user + 50 * k},{rng.integers(1, 6)}"
        for user in range(users)
        for k in range(events)
    ]


@pytest.mark.parametrize("files", [1, 2])
def test_lines_that_are_written_twice_make_the_dataset_of_those_written_once(tmp_path, files):
    once, lines = made(tmp_path / "once", log()), log()
    twice = made(tmp_path / "twice", [x for x in lines for _ in range(2)], files=files)
    assert twice.hash == once.hash
    assert told(twice) == {"repeats": len(lines), "changes": 0, "copied_users": 0}
    assert told(once) == {"repeats": 0, "changes": 0, "copied_users": 0}
    shown = command.summary(twice, Config(), seconds=0.0)
    assert (
        "\nduplicates        360 events repeat the user, item and time of another: left out"
        in shown
    )
    assert "duplicates" not in command.summary(once, Config(), seconds=0.0)


def test_repeats_are_kept_or_refused_if_the_config_says_so(tmp_path):
    lines = [x for x in log() for _ in range(2)]
    kept = made(tmp_path / "keep", lines, duplicates="keep")
    assert kept.num_events == len(lines) and told(kept)["repeats"] == len(lines) // 2
    assert "kept (data.duplicates=keep)" in command.summary(kept, Config(), seconds=0.0)
    with pytest.raises(ConfigError, match="360 events have the user, item and time of another; "):
        made(tmp_path / "error", lines, duplicates="error")
    assert made(tmp_path / "sound", log(), duplicates="error").num_events == len(lines) // 2


def test_events_a_millisecond_apart_are_two_and_those_of_one_moment_one(tmp_path):
    lines = ["a,x,1000000000.001,", "a,x,1000000000.002,", "a,x,1000000000.001,", "a,y,1e9,"]
    dataset = made(tmp_path / "fractions", lines)
    assert dataset.num_events == 3 and told(dataset)["repeats"] == 1
    lines = ["a,x,1000000000001,", "a,x,1000000000002,", "a,x,1000000000001,"]
    assert made(tmp_path / "ms", lines, time_unit="ms").num_events == 2


def test_a_rating_that_is_changed_at_the_same_moment_takes_its_last_value_and_keeps_its_place(
    tmp_path,
):
    lines = ["a,y,7,1", "a,x,7,2", "a,y,7,1", "a,y,7,4", "a,z,7,", "a,y,7,5", "a,z,7,"]
    dataset = made(tmp_path, lines, actions=("liked=stars>=4",))
    items = dataset.catalogue.raw_items(dataset.events.item)
    assert items == ["y", "x", "z"] and dataset.events.rating is not None
    np.testing.assert_array_equal(dataset.events.rating, np.array([5, 2, np.nan], np.float32))
    assert dataset.events.action is not None and dataset.events.action.tolist() == [1, 0, 0]
    assert told(dataset) == {"repeats": 2, "changes": 2, "copied_users": 0}
    shown = command.summary(dataset, Config(), seconds=0.0)
    assert "2 events differ from another only in rating or actions: the last one counts" in shown


def test_repeats_do_not_count_for_the_filter(tmp_path):
    lines = ["a,x,1,", "a,x,1,", "a,y,2,", "b,x,3,", "b,y,4,", "c,z,5,", "c,z,5,"]
    dataset = made(tmp_path, lines, filter="k_core", min_events=2)
    assert dataset.catalogue.users["raw"].to_list() == ["a", "b"]


def test_a_session_that_is_exported_again_with_other_ids_is_counted_and_kept(tmp_path):
    lines = log()
    copies = [x.replace("u7,", "u107,") for x in lines if x.startswith("u7,")]
    copies += [x.replace("u9,", "u109,") for x in lines if x.startswith("u9,")]
    dataset = made(tmp_path, [*lines, *copies])
    assert dataset.num_users == 32 and told(dataset)["copied_users"] == 2
    assert duplicates.told(dataset.meta)[0].startswith(
        "2 users have the items and times of another"
    )


def test_users_in_several_chunks_are_compared_and_short_histories_are_not(monkeypatch):
    offsets = np.array([0, 3, 6, 8, 10, 13, 16])
    item = np.array([1, 2, 3, 1, 2, 3, 4, 4, 4, 4, 2, 1, 3, 1, 2, 3])
    time = np.array([5, 5, 6, 5, 5, 6, 1, 2, 1, 2, 5, 5, 6, 5, 5, 7])
    for chunk in (1, 4, 100):
        monkeypatch.setattr(duplicates, "_CHUNK", chunk)
        assert duplicates.copied_users(offsets, item, time) == 2, "those of one moment in any order"


EVENT = st.tuples(*(st.integers(0, 2) for _ in range(3)), st.sampled_from([None, 1.0, 2.0]))


@given(st.lists(EVENT, min_size=1, max_size=25))
def test_what_stays_is_one_event_for_each_user_item_and_time(events):
    events = sorted(events, key=lambda event: (event[0], event[2]))
    user, item, time = (np.array([e[i] for e in events]) for i in range(3))
    rating = np.array([np.nan if e[3] is None else e[3] for e in events])
    found = duplicates.find(user, item, {"timestamp": time, "rating": rating})
    columns = {"user": user, "item": item, "timestamp": time, "rating": rating}
    left = duplicates.without(found, columns)
    last, exact, changes = {}, 0, 0
    for u, i, t, r in events:
        if (u, i, t) in last:
            exact, changes = exact + (last[u, i, t] == r), changes + (last[u, i, t] != r)
        last[u, i, t] = r
    assert found.counts == {"repeats": exact, "changes": changes}
    expected = [(*key, r) for key, r in last.items()]
    rows = zip(left["user"], left["item"], left["timestamp"], left["rating"], strict=True)
    assert [(u, i, t, None if np.isnan(r) else r) for u, i, t, r in rows] == expected
