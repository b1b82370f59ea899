"""A stream in which items appear and vanish, on a table with fewer entries than items."""

import json
from pathlib import Path

import numpy as np
import pytest

from gr_jax import evaluate
from gr_jax.config import ConfigError
from gr_jax.data.run_dataset import dataset_of
from gr_jax.reporting import learned
from gr_jax.training.run import open_trained
from tests.tiny_run import assert_same_state, begun, final_state, lines_of, run_train

CONFIG = """
from gr_jax.config import *

def get_config(variant=""):
    return Config(
        data=DataConfig(
            source="csv", path={path!r}, prepared={prepared!r}, max_length=8, row_length=32,
            actions=("liked=liked",),
        ),
        model=ModelConfig(width=16, num_blocks=1, qk_width=8, v_width=8, head_width=16),
        ranking=RankingConfig(tasks=("liked",), valid_from=0.7, test_from=0.85),
        vocabulary=VocabularyConfig(
            kind="admitted", rows=12, shared_rows=6, hashes=2, admit_after=2, evict_after=6,
            update_every=2,
        ),
        train=TrainConfig(mode="streaming", windows=4, batch_users=6, log_every=2, session_gap=1),
        optimizer=OptimizerConfig(table="rowwise_adamw"),
        mesh=MeshConfig(data=1),
    )
"""
ITEMS = 40


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    """60 users come one after the other; item i is taken for a while around its time."""
    folder = tmp_path_factory.mktemp("stream")
    rng, lines = np.random.default_rng(0), ["user_id,item_id,timestamp,liked"]
    for user in range(60):
        for k in range(6):
            item = min(ITEMS - 1, int(user / 60 * ITEMS) + int(rng.integers(4)))
            lines.append(
                f"u{user},i{item},{10**9 + 1000 * user + 10 * k},{int(rng.random() < 0.5)}"
            )
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    config = folder / "tiny.py"
    config.write_text(
        CONFIG.format(path=str(folder / "log.csv"), prepared=str(folder / "prepared"))
    )
    return config


@pytest.fixture(scope="module")
def finished(config_file, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert run_train(config_file, workdir) == 0
    return workdir


def test_items_that_appear_get_rows_and_those_that_vanish_lose_them(finished):
    found = final_state(finished)
    rows, last = (found[f"['vocabulary']['{name}']"] for name in ("rows", "last"))
    owners = np.flatnonzero(rows[:, 0] > 6)
    assert 0 < len(owners) <= 12 and len(np.unique(rows[owners, 0])) == len(owners)
    assert (last > 0).sum() > 12 + 6, "more items than rows were seen"
    assert last[owners].min() > np.median(last[last > 0])
    assert found["['params']['embeddings']['item_table']"].shape == (128, 16)


def test_a_stopped_stream_resumes_to_the_same_rows_and_bits(finished, config_file, tmp_path):
    for steps in ("--config.train.steps=7", "--config.train.steps=0"):
        assert run_train(config_file, tmp_path, steps) == 0
    assert_same_state(finished, tmp_path)
    assert (
        lines_of(tmp_path, "valid")[-1]["ne/liked"] == lines_of(finished, "valid")[-1]["ne/liked"]
    )


def test_evaluation_and_serving_see_a_row_for_each_item(finished):
    result = json.loads((finished / "result.json").read_text())
    assert evaluate.evaluate(finished, "test") == pytest.approx(result["test"], abs=1e-6)
    _, params = open_trained(
        finished, one_device=True
    )  # what gr_jax.load and the server start from
    found = final_state(finished)
    table, rows = found["['params']['embeddings']['item_table']"], found["['vocabulary']['rows']"]
    scale = np.sqrt(np.maximum((rows > 0).sum(-1), 1))
    expected = np.where(rows[..., None] > 0, table[rows], 0).sum(1) / scale[:, None]
    np.testing.assert_allclose(params["embeddings"]["item_table"], expected, rtol=1e-6)
    assert len(expected) > ITEMS


def test_the_report_counts_the_parameters_that_were_trained(finished):
    trained = [x.size for name, x in final_state(finished).items() if name.startswith("['params']")]
    assert learned.load(finished).parameters == sum(trained)


def test_a_run_with_another_vocabulary_is_refused(finished, config_file):
    with pytest.raises(ConfigError, match="config.vocabulary.rows=12, not 13"):
        run_train(config_file, finished, "--config.vocabulary.rows=13")


def test_a_run_on_a_newer_log_goes_on_with_the_rows_and_counts_of_its_items(
    finished, config_file, tmp_path
):
    log = (config_file.parent / "log.csv").read_text().splitlines()
    kept = [line for line in log if ",i39," not in line and ",i3," not in line]
    kept += [f"a{k},a{k % 2},{2 * 10**9},1" for k in range(8)]  # before all other items
    (tmp_path / "log.csv").write_text("\n".join(kept))
    run, state = begun(finished, tmp_path / "log.csv", tmp_path / "run")
    before = dataset_of(finished, run.config.data).catalogue
    raw = [f"i{i}" for i in range(39) if i != 3]
    then, now = before.item_ids(raw), run.dataset.catalogue.item_ids(raw)
    found, steps = final_state(finished), final_state(finished)["['step']"]

    ours = {name: np.asarray(array) for name, array in state.vocabulary.items()}
    for name, shift in (("rows", 0), ("seen", 0), ("last", steps)):
        np.testing.assert_array_equal(
            ours[name][now], found[f"['vocabulary']['{name}']"][then] - shift
        )
    assert not ours["seen"][run.dataset.catalogue.item_ids(["a0", "a1"])].any()
    table, free = np.asarray(state.params["embeddings"]["item_table"]), np.arange(7, 19)
    free = np.setdiff1d(free, ours["rows"])
    assert len(free) and not table[free].any(), "those of items that are gone wait for others"
    used = np.setdiff1d(np.arange(1, 19), free)
    expected = found["['params']['embeddings']['item_table']"]
    np.testing.assert_array_equal(table[used], expected[used])
