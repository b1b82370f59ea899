"""Apache Beam makes the same bytes of a log as one machine does, with the same errors."""

import functools
import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.beam.build import build
from gr_jax.data.log.preparation import prepare

pytest.importorskip(
    "apache_beam", reason="the extra [beam], in an environment of its own: see .ci/run"
)


def lines(seed: int, events: int = 120) -> list[str]:
    """Events of few users, with many ties and a rating that tells them apart."""
    rng = np.random.default_rng(seed)
    user, item, time = (
        rng.integers(1, 20, events),
        rng.geometric(0.12, events),
        rng.integers(0, 8, events),
    )
    return [f"{user[i]},{item[i]},{time[i]},{i % 50 / 10}" for i in range(events)]


def put(file: Path, rows: list[str]) -> None:
    text = "\n".join(["user_id,item_id,timestamp,stars", *rows, ""]).encode()
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)


def same(tmp_path: Path, **fields) -> dict[str, bytes]:
    """The files of the dataset in the folder `raw`, made by Beam; they are those of the default."""
    contents = []
    for name, made in (
        ("polars", None),
        ("beam", functools.partial(build, piece_bytes=500, num_shards=3)),
    ):
        config = DataConfig(path=str(tmp_path / "raw"), prepared=str(tmp_path / name), **fields)
        folder = prepare(config, build=made).folder
        contents.append({file.name: file.read_bytes() for file in sorted(folder.iterdir())})
    assert contents[0].keys() == contents[1].keys()
    for name in contents[0]:
        assert contents[0][name] == contents[1][name], name
    assert all(path.suffix == ".lock" for path in tmp_path.glob(".*")), "no scratch is left"
    return contents[1]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def test_files_with_bad_rows_actions_and_features_become_the_same_dataset(raw, tmp_path):
    rows = lines(1)
    rows[7], rows[40], rows[90] = "3,4,noon,1", "5,6", "7,8,3,"
    put(raw / "b.csv", lines(0))
    put(raw / "a.csv.gz", rows)
    put(raw / "c.csv", ["u7,3,2,4", *lines(2)])  # users sort as text, items as numbers
    (raw / "users.txt").write_text(
        "user_id,sex\n" + "".join(f"{i},{'FM'[i % 2]}\n" for i in range(15))
    )
    (raw / "items.txt").write_text(
        "item_id,title,tags\n" + "".join(f"{i},Film {i},{i % 3}|x\n" for i in range(15))
    )
    (raw / "moves.txt").write_text("user_id,timestamp,country\n1,2,de\n1,5,us\n7,1,us\n")
    files = same(
        tmp_path,
        source="csv",
        on_bad_row="skip",
        rating_column="stars",
        time_unit="s",
        actions=("good=stars>=3", "seen=1"),
        user_file="users.txt",
        user_features=("sex",),
        item_file="items.txt",
        item_features=("tags",),
        series=("country=moves.txt",),
    )
    assert {
        "rating.npy",
        "action.npy",
        "user_features.npy",
        "item_features.npy",
        "series_time.npy",
    } <= files.keys()
    assert b'"time is not a number": 1' in files["meta.json"]


def test_fractions_in_some_of_the_files_order_the_same_dataset(raw, tmp_path):
    fractions = (np.random.default_rng(9).integers(0, 10, 120) / 10).astype(str)
    put(raw / "a.csv", lines(7))
    split = [row.split(",") for row in lines(8)]
    put(
        raw / "b.csv",
        [f"{u},{i},{t}{f[1:]},{s}" for (u, i, t, s), f in zip(split, fractions, strict=True)],
    )
    assert "fraction.npy" not in same(
        tmp_path, source="csv", rating_column="stars", filter="k_core", min_events=2
    )


@pytest.mark.parametrize("filter", ["k_core", "one_pass"])
def test_filters_leave_the_same_dataset(raw, tmp_path, filter):
    # Chains of users and items that hold each other by one event: the core is reached after more
    # rounds than a run has.
    chain = [f"{100 + i},{1000 + i + j},{i},1" for i in range(14) for j in range(2)]
    put(raw / "log.csv", [*lines(3, 60), *chain, *lines(3, 60)[::5]])
    files = same(tmp_path, source="csv", filter=filter, min_events=2)
    assert b'"repeats": 12' in files["meta.json"]


def test_a_filter_that_leaves_nothing_and_a_bad_row_are_told_in_the_same_words(raw, tmp_path):
    rows = lines(5)
    put(raw / "log.csv", rows)
    told = []
    for fields in ({"filter": "k_core", "min_events": 1000}, {"duplicates": "error"}):
        config = DataConfig(source="csv", path=str(raw), prepared=str(tmp_path / "out"), **fields)
        for made in (None, functools.partial(build, piece_bytes=300)):
            with pytest.raises(ConfigError) as error:
                prepare(config, build=made)
            told.append(str(error.value))
        rows[11], rows[80] = "1,2,soon,3", "1,2"
        put(raw / "log.csv", rows)
    assert told[0] == told[1] and "no events after" in told[0]
    assert told[2] == told[3] and "log.csv:13" in told[2]
    put(raw / "log.csv", lines(5))
    for made in (None, build):
        with pytest.raises(ConfigError, match="events have the user, item and time of another"):
            prepare(config, build=made)
    assert not (tmp_path / "out").exists()


def test_the_command_takes_options_of_beam(raw, tmp_path):
    """In several processes: what workers need comes to them pickled."""
    put(raw / "log.csv", lines(6))
    options = "--beam-options=--direct_num_workers=2 --direct_running_mode=multi_processing"
    argv = ["--source=csv", f"--path={raw}", f"--out={tmp_path}/out", "--runner=beam", options]
    argv.append("--duplicates=keep")
    done = subprocess.run(
        [sys.executable, "-m", "gr_jax.prepare", *argv], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "events            120" in done.stdout
