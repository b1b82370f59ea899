"""Training on a log without a config: everything is chosen by what is in the log."""

import json

import numpy as np
import pytest

from gr_jax import evaluate, train
from gr_jax.config import ConfigError, files


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    """A log in milliseconds, with columns and a delimiter of its own."""
    rng, lines = np.random.default_rng(0), ["who;what;when"]
    for user in range(40):
        for step in range(8):
            time = 1_700_000_000_000 + 100_000 * step + user
            lines.append(f"u{user};i{rng.integers(30)};{time}")
    file = tmp_path_factory.mktemp("own") / "clicks.csv"
    file.write_text("\n".join(lines))
    return file


def flags_of(clicks, workdir):
    columns = ["--user-column=who", "--item-column=what", "--time-column=when"]
    return [f"--data={clicks}", *columns, f"--workdir={workdir}", "--report=false"]


def test_a_log_alone_is_enough_and_the_choice_is_told_written_and_kept(
    clicks, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    flags = flags_of(clicks, "run")
    assert train.main([*flags, "--budget=0.5x", "--config.train.epochs=1"]) == 0
    said = capsys.readouterr().out
    assert "chosen  histories of 50 events" in said and "in run/chosen.py, to be edited" in said
    config = files.load("run/chosen.py")
    assert config.data.time_unit == "ms" and config.data.user_column == "who"
    assert "search  model.temperature=0.4, to epoch 1" in said and "search  best: " in said
    found = json.loads((tmp_path / "run" / "search.json").read_text())
    assert [trial["settings"] for trial in found["trials"]] == [{}, {"model.temperature": "0.4"}]
    best = max(found["trials"], key=lambda trial: trial["valid ndcg@10"])
    assert f"{config.model.temperature}" == best["settings"].get("model.temperature", "0.2")

    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["baselines"]) == {"popularity", "Markov", "item-kNN", "EASE"}
    assert result["valid"]["ndcg@10"] == pytest.approx(best["valid ndcg@10"])
    assert evaluate.evaluate(tmp_path / "run", "test") == pytest.approx(result["test"])

    assert train.main([*flags, "--config.train.epochs=1"]) == 0, "it resumes: nothing to do"
    assert "chosen" not in capsys.readouterr().out


def test_either_a_config_or_a_log_is_given(clicks):
    with pytest.raises(ConfigError, match="--config=FILE.* or --data=FILE must be given"):
        train.main([])
    with pytest.raises(ConfigError, match="--config=FILE.* or --data=FILE must be given"):
        train.main([f"--data={clicks}", "--config=configs/synthetic.py"])


@pytest.mark.parametrize("budget", ["-1", "nanx", "much"])
def test_a_budget_is_a_number_of_trainings(clicks, tmp_path, budget):
    with pytest.raises(ConfigError, match=f"--budget='{budget}': must be a number of trainings"):
        train.main([*flags_of(clicks, tmp_path / "run"), f"--budget={budget}"])


def test_a_column_that_is_not_there_is_named(clicks, tmp_path):
    flags = [f"--data={clicks}", "--user-column=whom", f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match="no user column 'whom'.*did you mean 'who'"):
        train.main(flags)
