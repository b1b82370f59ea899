"""The search of a run without a config, with trainings whose scores are made up."""

import json
import signal

import pytest

from gr_jax.config import Config, ModelConfig
from gr_jax.config import files as config_files
from gr_jax.tuning import search as module
from gr_jax.tuning.search import neighbours, search

CONFIG = Config(model=ModelConfig(temperature=0.1, dropout=0.5, input_dropout=0.5))
EPOCHS = 8


@pytest.fixture
def trained(monkeypatch):
    """Replace training: scores rise by epoch, up to one that the temperature decides."""
    calls = []

    def train(config, workdir, *, judge=None):
        calls.append((config, workdir))
        if len(calls) == train.interrupted_at:
            return 128 + signal.SIGTERM
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "checkpoints").mkdir(exist_ok=True)
        (workdir / "checkpoints/step").write_text(str(config.model.temperature))
        config_files.save(config, workdir / "config.json")
        metrics = workdir / "metrics.jsonl"
        done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        for epoch in range(done + 1, EPOCHS + 1):
            score = config.model.temperature * epoch / EPOCHS
            with metrics.open("a") as file:
                line = {"split": "valid", "epoch": epoch, "ndcg@10": score}
                file.write(json.dumps(line) + "\n")
            if judge is not None and judge(epoch, score):
                break
        return 0

    train.calls, train.interrupted_at = calls, 0
    monkeypatch.setattr(module, "train", train)
    return train


def test_the_best_on_validation_becomes_the_run_and_the_rest_goes(trained, tmp_path):
    config, code = search(CONFIG, tmp_path, 2.0)
    assert code == 0 and config.model.temperature == 0.2
    assert (tmp_path / "checkpoints/step").read_text() == "0.2"
    assert config_files.read(tmp_path / "config.json") == config
    found = json.loads((tmp_path / "search.json").read_text())
    assert len(found["trials"]) == 5, "what the rules chose, and 2 x 2 neighbours"
    assert [trial["epochs"] for trial in found["trials"]] == [8, 8, 4, 2, 2]
    assert not (tmp_path / "search").exists()


def test_the_rules_win_where_nothing_near_is_better(trained, tmp_path):
    config, _ = search(CONFIG, tmp_path, 1.0, fixed=["model.temperature"])
    assert config == CONFIG, "equal scores are not better"


def test_without_a_budget_nothing_is_trained(trained, tmp_path):
    assert search(CONFIG, tmp_path, 0.0) == (CONFIG, 0) and not trained.calls


def test_a_search_that_was_interrupted_goes_on_without_repeating_a_training(trained, tmp_path):
    whole, _ = search(CONFIG, tmp_path / "whole", 2.0)
    count = len(trained.calls)
    for at in (1, 3, count):
        trained.calls.clear()
        trained.interrupted_at = at
        folder = tmp_path / str(at)
        assert search(CONFIG, folder, 2.0)[1] == 128 + signal.SIGTERM
        trained.interrupted_at = 0
        assert search(CONFIG, folder, 2.0) == (whole, 0)
        assert len(trained.calls) <= count + 1 + (at > 1), "the first one is asked for its end"


def test_a_line_cut_short_by_a_kill_does_not_keep_a_search_from_going_on(trained, tmp_path):
    trained.interrupted_at = 2
    search(CONFIG, tmp_path, 1.0)
    with (tmp_path / "search/0/metrics.jsonl").open("a") as file:
        file.write('{"split": "va')
    trained.interrupted_at = 0
    assert search(CONFIG, tmp_path, 1.0)[0].model.temperature == 0.2


def test_a_move_that_was_interrupted_is_finished(trained, tmp_path):
    search(CONFIG, tmp_path, 1.0)
    (tmp_path / "search/1").mkdir(parents=True)
    (tmp_path / "checkpoints").rename(tmp_path / "search/1/checkpoints")
    count = len(trained.calls)
    config, _ = search(CONFIG, tmp_path, 1.0)
    assert config.model.temperature == 0.2 and len(trained.calls) == count
    assert (tmp_path / "checkpoints/step").exists() and not (tmp_path / "search").exists()


@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.5])
def test_every_neighbour_is_a_config_that_differs(dropout):
    model = ModelConfig(dropout=dropout, input_dropout=dropout)
    for settings in neighbours(Config(model=model)):
        assert module.override_all(Config(model=model), settings) != Config(model=model)
