"""The command `evaluate`, on the run that other tests share and on one with a split by time."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from gr_jax import evaluate
from gr_jax.config import ConfigError
from gr_jax.reporting import records, tables
from gr_jax.training.retrieval import objective as retrieval
from tests.tiny_run import run_train


def test_further_k_and_the_rank_of_every_user_are_told(finished, tmp_path, capsys):
    file = tmp_path / "ranks.parquet"
    assert evaluate.main([f"--workdir={finished}", "--at=5,20", f"--ranks={file}"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)

    ranks = pl.read_parquet(file)
    assert ranks.equals(pl.read_parquet(finished / "test_ranks.parquet"))
    assert ranks.columns == ["user", "item", "rank", "log_prob", "history"]
    assert set(ranks["user"]) == {f"u{user}" for user in range(64)} and len(ranks) == 64
    rank = ranks["rank"].cast(pl.Float64).fill_null(np.inf)
    for k in (5, 10, 20):
        assert found[f"hr@{k}"] == pytest.approx((rank <= k).mean())
    assert -ranks["log_prob"].mean() == pytest.approx(found["log_perplexity"], rel=1e-5)
    assert (ranks["history"] == 13).all()
    line = next(line for line in said.err.splitlines() if line.startswith("hr@5 "))
    assert f"{found['hr@5']:.4f}" in line


def test_mistakes_in_what_is_asked_for_are_told_before_anything_is_computed(finished, tmp_path):
    missing = tmp_path / "no" / "ranks.parquet"
    for flag, said in (
        (f"--ranks={missing}", f"there is no folder {missing.parent}"),
        ("--at=five", "--at=five: expected whole numbers such as 5,20"),
        ("--at=0", r"config.evaluate.at=\(0,\): must be a tuple of whole numbers of at least 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            evaluate.main([f"--workdir={finished}", flag])


def test_a_run_is_compared_with_another_user_by_user(finished, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    ranks = pl.read_parquet(finished / "test_ranks.parquet")
    ranks.with_columns(rank=pl.col("rank") + 1).write_parquet(other / "test_ranks.parquet")
    assert evaluate.main([f"--workdir={finished}", f"--against={other}"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["difference"] > 0 and found["p"] < 0.05 and found["users"] == 64
    assert said.err.startswith("ndcg@10 ")
    with pytest.raises(ConfigError, match="missing; make it by python -m gr_jax.evaluate"):
        evaluate.main([f"--workdir={finished}", f"--against={tmp_path}"])
    with pytest.raises(ConfigError, match="--against compares the tests of two runs"):
        evaluate.main([f"--workdir={finished}", f"--against={other}", "--split=valid"])


def test_baselines_are_computed_again_only_if_what_they_depend_on_is_another(
    config_file, finished, tmp_path, monkeypatch, capsys
):
    computed = []
    monkeypatch.setattr(
        retrieval.Retrieval, "baselines", lambda self, tell: computed.append(1) or {"new": {}}
    )
    assert evaluate.main([f"--workdir={finished}"]) == 0
    assert "item-kNN" in capsys.readouterr().err and not computed
    assert evaluate.main([f"--workdir={finished}", "--at=3"]) == 0
    assert "new" in capsys.readouterr().err and computed

    copy = Path(shutil.copytree(finished, tmp_path / "again"))
    computed.clear()
    assert run_train(config_file, copy) == 0 and not computed
    before, after = (json.loads((w / "result.json").read_text()) for w in (finished, copy))
    assert after["baselines"] == before["baselines"] and "item-kNN" in after["baselines"]
    assert run_train(config_file, copy, "--config.evaluate.at=(5,)") == 0 and computed
    assert "hr@5" in json.loads((copy / "result.json").read_text())["test"]


def test_a_run_with_a_split_by_time_is_trained_judged_and_reported(config_file, tmp_path, capsys):
    change = ("--config.evaluate.split=time", "--config.evaluate.at=(5,)")
    assert run_train(config_file, tmp_path, *change, "--config.train.epochs=1") == 0
    said = capsys.readouterr().out
    assert "split   by time: " in said and " of 64 users" in said
    result = json.loads((tmp_path / "result.json").read_text())
    for split in ("valid", "test"):
        assert evaluate.evaluate(tmp_path, split) == pytest.approx(result[split])
    test = result["test"]
    asked = len(pl.read_parquet(tmp_path / "test_ranks.parquet"))
    assert 0 < asked < 64
    parts = [test.get(f"queries/popularity_{part}", 0) for part in ("head", "mid", "tail")]
    assert sum(parts) == asked and 0 < test["coverage@10"] <= 1 and test["novelty@10"] > 0
    assert result["baselines"]["popularity"].keys() >= {"hr@5", "cold", "ndcg@10/se"}

    [record] = records.read([tmp_path])
    further = tables.further_results([record])
    assert {"hr@5", "ndcg@5"} <= set(further["At other K"].head)
    assert {"coverage@10", "novelty@10", "cold"} <= set(further["Beyond accuracy"].head)
    assert "evaluate.split=time" in tables.title(record)
