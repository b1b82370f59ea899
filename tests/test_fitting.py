"""From a table to a model, and from a model to tables."""

import re
import shutil
import signal
import threading

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import gr_jax
from gr_jax import evaluate, fitting
from gr_jax.config import Config, ConfigError, DataConfig, ModelConfig
from gr_jax.data.log.preparation import prepare
from gr_jax.serving import model as serving_model
from gr_jax.training import loop

# As the run of tests/serving, so that both share their compiled programs.
SMALL = {
    "budget": 0,
    "model.width": 16,
    "model.num_blocks": 1,
    "model.qk_width": 8,
    "model.v_width": 8,
    "model.num_heads": 1,
    "train.epochs": 2,
    "train.batch_users": 16,
    "train.validate_every": 1,
    "data.max_length": 8,
    "data.row_length": 16,
    "mesh.data": 1,
}


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    """64 users walk through 40 items; an index, categories and a zone, as people have them."""
    rng, rows = np.random.default_rng(0), []
    for user in range(64):
        start, times = rng.integers(40), 10**9 + np.cumsum(rng.integers(1, 10**5, 14))
        rows += [(100 + user, f"i{(start + step) % 40}", t) for step, t in enumerate(times)]
    table = pd.DataFrame(rows, columns=["customer", "product", "at"]).sample(frac=1, random_state=0)
    at = pd.to_datetime(table["at"], unit="s", utc=True).dt.tz_convert("Europe/Berlin")
    return table.assign(at=at).astype({"product": "category", "customer": "Int64"})


COLUMNS = {"user": "customer", "item": "product", "time": "at"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("fit") / "run"


@pytest.fixture(scope="module")
def items() -> pl.DataFrame:
    items = pl.DataFrame({"product": [f"i{i}" for i in range(40)], "kind": ["odd", "even"] * 20})
    return items.with_columns(title="Film " + pl.col("product"))


@pytest.fixture(scope="module")
def model(events, items, workdir):
    """Of a run that Ctrl-C interrupted after the first of two epochs."""
    validate = loop.validate

    def interrupted(*args):
        progress = validate(*args)
        signal.raise_signal(signal.SIGINT)
        return progress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "validate", interrupted)
        return gr_jax.fit(events, **COLUMNS, items=items, workdir=workdir, **SMALL)


def test_tables_of_the_model_are_like_the_one_it_was_fitted_on(model, events):
    lists = model.recommend_users(k=3)
    assert isinstance(lists, pd.DataFrame) and list(lists) == ["user", "item", "rank", "score"]
    assert lists["user"].dtype == events["customer"].dtype and len(lists) == 64 * 3
    assert lists["item"].dtype == events["product"].dtype
    alone = model.recommend(model.history(107), 3, user=107)
    assert lists[lists["user"] == 107]["item"].to_list() == [item.item for item in alone]
    assert alone.items[0].title == f"Film {alone.items[0].item}"
    near = model.similar_items(["i3"], k=2)
    assert near["similar_item"].dtype == events["product"].dtype
    assert len(model.item_vectors()["vector"][0]) == 16
    assert model.dataset.meta["item_features"] == ["kind"]


def test_its_run_is_usable_anywhere_and_goes_on(model, events, items, workdir, tmp_path, capsys):
    expected = model.evaluate()
    assert expected == pytest.approx(evaluate.evaluate(workdir, "test"))
    log = {path.name for path in (workdir / "log").iterdir()}
    assert log == {"events.parquet", "items.parquet"}
    shutil.copytree(workdir, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "log")
    table = gr_jax.load(tmp_path / "moved").recommend_users(["107"], k=2)
    assert isinstance(table, pl.DataFrame) and table["user"].to_list() == [107, 107]

    again = gr_jax.fit(events, **COLUMNS, items=items, workdir=workdir, **SMALL)
    assert re.search("[4-7] of 8 done: resuming", capsys.readouterr().out)
    assert again.evaluate() == pytest.approx(evaluate.evaluate(workdir, "test"))
    assert (workdir / "result.json").is_file()
    with pytest.raises(ConfigError, match="holds a run on another log: choose another workdir"):
        gr_jax.fit(events.head(500), **COLUMNS, items=items, workdir=workdir, **SMALL)
    assert len(gr_jax.load(workdir).recommend_users(k=1)) == 64, "which stays usable"


def test_without_a_validation_there_is_no_model(events, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "train", lambda *_: 128 + signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="no validation has passed"):
        gr_jax.fit(events, **COLUMNS, workdir=tmp_path / "run", progress=False, budget=0)


def test_it_trains_in_any_thread_without_a_word_and_leaves_nothing(
    events, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    data = DataConfig(source="ml-1m", max_length=8, row_length=16)
    config = Config(data=data, model=ModelConfig(temperature=0.2))
    made = []

    def fit():
        table = pa.Table.from_pandas(events)
        made.append(gr_jax.fit(table, **COLUMNS, config=config, progress=False, **SMALL))

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert capfd.readouterr() == ("", "")
    lists = made[0].recommend_users([107], k=3)
    assert isinstance(lists, pa.Table) and lists.column("user").to_pylist() == [107] * 3
    assert len(list((tmp_path / "tmp").iterdir())) == 1, "the run, as long as there is the model"
    made[0].save(tmp_path / "kept")
    made.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "tmp"]
    assert not list((tmp_path / "tmp").iterdir())
    kept = gr_jax.load(tmp_path / "kept")
    assert kept.recommend_users([107], k=3)["item"].to_list() == lists.column("item").to_pylist()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"users": "customer"}, "fit has no argument 'users'; did you mean user="),
        ({"epochs": 3}, r"no argument 'epochs' .fields of the config have dotted names"),
        ({"train.epoch": 3}, "config.train has no field 'epoch'; did you mean config.train.epochs"),
        ({"train.epochs": "many"}, "config.train.epochs: expected int, got 'many'"),
        ({"config": "configs/ml_1m.py"}, "config='configs/ml_1m.py': expected a gr_jax.Config"),
        ({"user": "user"}, "events: no column 'user'"),
        ({"user": "product"}, "user='product', item='product', .* each has its own column"),
        ({"data.path": "x"}, "data.path: events, user, item, time and items of fit decide it"),
        ({"workdir": ""}, "workdir='' is no folder"),
        ({"workdir": "/proc/x"}, "/proc/x: cannot be written"),
        ({"items": "no.csv"}, "no.csv: no such file"),
        ({"data.item_features": ["kind"]}, "data.item_features=.* give their table by items="),
        ({"events": "no.csv"}, "no.csv: no such file"),
    ],
)
def test_a_mistake_is_one_line(events, arguments, told):
    with pytest.raises(ConfigError, match=told):
        gr_jax.fit(**({"events": events} | COLUMNS | arguments))


def test_a_call_that_failed_leaves_nothing_in_the_way(events, tmp_path, monkeypatch):
    seen, small = [], {"workdir": tmp_path / "run", "progress": False, "budget": 0}
    monkeypatch.setattr(fitting, "_trained", lambda config, *_: seen.append(prepare(config.data)))
    for table, more in (
        (events.head(700), {}),
        (events, {}),
        (events, {"data.time_unit": "ms", "data.max_length": 7}),
    ):
        with pytest.raises(AttributeError):  # nothing was trained
            gr_jax.fit(table, **COLUMNS, **small, **more)
    assert [dataset.num_events for dataset in seen] == [700, 896, 896]


def test_a_bad_row_is_one_of_the_table(events):
    early = events.assign(at=[pd.Timestamp("1960-01-01"), *events["at"].dt.tz_localize(None)[1:]])
    with pytest.raises(ConfigError, match="^events: row 1: .*time is negative"):
        gr_jax.fit(early, **COLUMNS)


def test_what_is_public_is_listed_and_there():
    assert {"fit", "load", "Config", "TrainedModel"} <= set(dir(gr_jax))
    for name in gr_jax.__all__:
        assert getattr(gr_jax, name).__name__ == name
    assert gr_jax.TrainedModel is serving_model.TrainedModel
