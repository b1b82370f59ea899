import json

import numpy as np
import pytest

from experiments.common import retrieval_runs

COMMAND = "python -m gr_jax.train --config=configs/ml_1m.py --config.seed="


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval_runs, "RESULTS", tmp_path)
    folder = tmp_path / "some"
    folder.mkdir()

    def keep(name: str, seed: int, rank: list[int] | None) -> None:
        test, command = (
            dict.fromkeys(retrieval_runs.SHOWN, 0.1 * seed),
            f"{COMMAND}{seed} --config.data.source=csv",
        )
        (folder / f"{name}-{seed}.json").write_text(json.dumps({"command": command, "test": test}))
        if rank is not None:
            np.savez(folder / f"{name}-{seed}.npz", rank=np.array(rank))

    return keep


def test_ndcg_of_a_rank_is_that_of_one_relevant_item():
    np.testing.assert_allclose(
        retrieval_runs.ndcg(np.array([1, 3, 10, 11])), [1, 0.5, 1 / np.log2(11), 0]
    )


def test_runs_are_compared_by_user_over_the_seeds_that_both_have_ranks_of(results):
    results("ours", 0, [1, 1, 1, 3])
    results("ours", 1, [1, 1, 3, 3])
    results("ours", 2, [11, 11, 11, 11])  # the rival has no such seed
    results("rival", 0, [3, 3, 3, 11])
    results("rival", 1, [3, 3, 3, 11])
    results("rival", 2, None)
    found = retrieval_runs.significance("some", "ours", "rival")
    assert found is not None and found["seeds"] == [0, 1]
    assert found["ndcg@10_gain"] == pytest.approx((1 + 1 + 0.75 + 0.5) / (0.5 * 3) - 1)
    difference = np.array([0.5, 0.5, 0.25, 0.5])
    t = difference.mean() / (difference.std(ddof=1) / 2)
    assert t == pytest.approx(7.0) and found["p"] == pytest.approx(
        0.00599, abs=1e-5
    )  # of Student's t, 3 degrees


def test_a_name_that_begins_as_another_is_another_run(results):
    results("hstu", 0, None)
    results("hstu-large", 0, None)
    assert list(retrieval_runs.kept("some", "hstu")) == [0]
    assert "| hstu | 1 |" in retrieval_runs.table("some", ["hstu", "hstu-large", "absent"])


def test_without_a_common_seed_nothing_is_compared(results):
    results("ours", 0, [1])
    assert retrieval_runs.significance("some", "ours", "rival") is None


def test_a_training_that_is_kept_is_not_repeated_and_seeds_may_have_any_number(results):
    results("hstu", 10, None)
    assert list(retrieval_runs.kept("some", "hstu")) == [10]
    for seed, kept in ((10, True), (3, False)):
        said = ["--config=configs/ml_1m.py", f"--config.seed={seed}"]
        assert retrieval_runs.kept_already("some", "hstu", seed, said) == kept


@pytest.mark.parametrize("seed", [0, 3])
def test_another_training_does_not_take_the_name_of_a_kept_one(results, seed):
    results("hstu", 0, None)
    said = ["--config=configs/ml_1m.py", f"--config.seed={seed}", "--config.model.bias=none"]
    with pytest.raises(SystemExit, match=r"hstu-0\.json is of .*not of .*bias=none.*move it away"):
        retrieval_runs.kept_already("some", "hstu", seed, said)


@pytest.fixture
def asked(monkeypatch):
    """Runs that an ablation of two variants asks for."""
    found = []

    def run(experiment, name, seed, config, change, args):
        found.append((name, seed, config, change))

    monkeypatch.setattr(retrieval_runs, "run", run)

    def ablation(*arguments: str):
        monkeypatch.setattr("sys.argv", ["ablation", *arguments])
        variants = {"plain": ("a.py", []), "other": ("a.py", ["--config.x=1"])}
        retrieval_runs.run_variants("some", variants, "An ablation.")
        return found

    return ablation


def test_an_ablation_runs_the_variants_that_are_asked_for_with_each_seed(asked, results):
    command = ("--only=other", "--seeds=0,2", "--", "--config.train.epochs=3")
    expected = ["--config.x=1", "--config.train.epochs=3"]
    assert asked(*command) == [("other", seed, "a.py", expected) for seed in (0, 2)]


def test_an_unknown_variant_is_named_with_the_known_ones(asked, capsys):
    with pytest.raises(SystemExit):
        asked("--only=plain,ohter")
    assert "--only: there are plain, other, not ohter" in capsys.readouterr().err


def test_a_result_names_the_device_that_its_training_names():
    assert retrieval_runs.hardware("NVIDIA H100 80GB HBM3") == "NVIDIA H100 80GB HBM3"
    assert "CPU cores" in retrieval_runs.hardware("cpu")
