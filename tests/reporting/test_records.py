import json
from pathlib import Path

import pytest

from gr_jax.config import Config, ConfigError, files
from gr_jax.reporting.records import names, read


@pytest.fixture
def workdir(tmp_path) -> Path:
    files.save(Config(), tmp_path / "config.json")
    lines = [{"step": step, "split": "train", "loss": 9.0 - step} for step in (1, 2)]
    lines.append({"step": 2, "split": "valid", "hr@10": 0.5})
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 3, "spl'
    (tmp_path / "metrics.jsonl").write_text(text)
    return tmp_path


def test_runs_are_called_by_the_shortest_ends_of_their_paths_that_differ():
    assert names([Path("/a/base"), Path("/a/large")]) == ["base", "large"]
    assert names([Path("/a/base/0"), Path("/a/large/0")]) == ["base/0", "large/0"]


def test_a_running_run_is_read_up_to_its_last_whole_line(workdir):
    (record,) = read([workdir])
    assert record.result is None and record.last_step == 2
    assert record.points("train", "loss")[1].tolist() == [8.0, 7.0]
    assert record.points("valid", "loss")[0].tolist() == []
    assert record.evaluated[0] == "valid at step 2" and record.evaluated[1]["hr@10"] == 0.5


def test_a_finished_run_is_evaluated_by_its_test(workdir):
    (workdir / "result.json").write_text(json.dumps({"test": {"hr@10": 0.4}}))
    assert read([workdir])[0].evaluated == ("test", {"hr@10": 0.4})


def test_a_damaged_result_is_one_line(workdir):
    (workdir / "result.json").write_text('{"test"')
    with pytest.raises(ConfigError, match=r"result.json: damaged"):
        read([workdir])
