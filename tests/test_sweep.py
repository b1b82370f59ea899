"""A sweep of two short trainings, from the command line to the test of the better one."""

import json

import pytest

pytest.importorskip("optuna")

from gr_jax import sweep  # noqa: E402
from gr_jax.config import ConfigError, files  # noqa: E402
from tests.tiny_run import lines_of  # noqa: E402


def test_the_best_trial_by_validation_is_the_only_one_that_is_tested(config_file, tmp_path, capsys):
    flags = [f"--config={config_file}", f"--workdir={tmp_path}", "--config.train.epochs=1"]
    search = ["--search", "optimizer.learning_rate=1e-5,3e-2"]
    assert sweep.main([*flags, *search]) == 0
    scores = [lines_of(tmp_path / f"trial-{n}", "valid")[-1]["ndcg@10"] for n in range(2)]
    assert scores[0] < scores[1]
    tested = [(tmp_path / f"trial-{n}" / "result.json").exists() for n in range(2)]
    assert tested == [False, True] and not lines_of(tmp_path / "trial-0", "test")
    result = json.loads((tmp_path / "trial-1" / "result.json").read_text())
    assert result["valid"]["ndcg@10"] == pytest.approx(scores[1])
    assert files.load(str(tmp_path / "best.py")).optimizer.learning_rate == 3e-2
    said = capsys.readouterr().out
    assert (
        "best    trial 1, optimizer.learning_rate=3e-2" in said
        and "loss" not in said.split("best")[0]
    )

    for changed, told in (
        (["--search", "model.width=1,2"], "holds a sweep of optimizer.learning_rate=1e-5,3e-2"),
        ([*search, "--config.seed=1"], "holds a sweep with config.seed=0, not 1"),
    ):
        with pytest.raises(ConfigError, match=told):
            sweep.main([*flags, *changed])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--search=model.width=1,2"], "--config=FILE.* or --data=FILE must be given"),
        (["--config=configs/ml_1m.py"], "--search=STR must be given"),
        (["--config=configs/ml_1m.py", "--search=seed=1,2", "--trials=0"], "--trials=0: must be"),
    ],
)
def test_a_mistake_is_one_line(flags, told):
    with pytest.raises(ConfigError, match=told):
        sweep.main(flags)
