"""Ranking runs from raw log to result: sequence model and impressions, epochs and streams."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import gr_jax
from gr_jax import evaluate, train
from gr_jax.config import ConfigError
from gr_jax.serving.load import trained_model
from tests.tiny_run import assert_same_state, begun, final_state, lines_of, run_train

CONFIG = """
from gr_jax.config import *

def get_config(variant="hstu"):
    kind, _, mode = variant.partition("-")
    return Config(
        data=DataConfig(
            source="csv", path={path!r}, prepared={prepared!r}, rating_column="stars",
            max_length=12, row_length=48, actions=("seen=1", "liked=stars>=4", "odd=is_odd"),
            user_file="users.csv", user_features=("country",),
            item_file="items.csv", item_features=("genres",),
            series=("device=device.csv",), max_series=3,
        ),
        model=ModelConfig(kind=kind, width=16, num_blocks=1, qk_width=8, v_width=8, head_width=16,
                          hidden_widths=(16,), cross_layers=1),
        ranking=RankingConfig(
            tasks=("liked", "rating"), weights=(1.0, 0.5), valid_from=0.7, test_from=0.85
        ),
        train=TrainConfig(
            mode=mode or "epochs", windows=4, epochs=2, batch_users=24, log_every=2, patience=0
        ),
        optimizer=OptimizerConfig(learning_rate=5e-3),
        mesh=MeshConfig(data=1),
    )
"""
VARIANTS = ("hstu", "dlrm", "hstu-streaming", "dlrm-streaming")


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    """48 users of two tastes rate 20 items; even items please one taste, odd ones the other."""
    folder = tmp_path_factory.mktemp("ratings")
    rng = np.random.default_rng(0)
    log, users, devices = (
        ["user_id,item_id,timestamp,stars,is_odd"],
        ["user_id,country"],
        ["user_id,timestamp,device"],
    )
    for user in range(48):
        taste, time = user % 2, 10**9 + int(rng.integers(10**6))
        users.append(f"u{user},{'BE' if user % 3 else 'FR'}")
        devices += [f"u{user},{time - 5},phone", f"u{user},{time + 40_000},tv"]
        for _ in range(int(rng.integers(10, 30))):
            item = int(rng.integers(20))
            likes = (item % 2 == taste) != (rng.random() < 0.1)
            stars = rng.integers(4, 6) if likes else rng.integers(1, 4)
            log.append(f"u{user},i{item},{time},{stars},{item % 2}")
            time += int(rng.integers(1, 10_000))
    items = ["item_id,genres"] + [
        f"i{item},{'even' if item % 2 == 0 else 'odd|strange'}" for item in range(20)
    ]
    for name, lines in (("log", log), ("users", users), ("items", items), ("device", devices)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    config = folder / "tiny.py"
    config.write_text(
        CONFIG.format(path=str(folder / "log.csv"), prepared=str(folder / "prepared"))
    )
    return config


@pytest.fixture(scope="module")
def finished(config_file, tmp_path_factory) -> dict[str, Path]:
    """The workdir of an uninterrupted run of each variant."""
    folder, workdirs = tmp_path_factory.mktemp("runs"), {}
    for variant in VARIANTS:
        workdirs[variant] = folder / variant
        assert run_train(Path(f"{config_file}:{variant}"), workdirs[variant]) == 0
    return workdirs


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_ranking_run_leaves_metrics_of_each_task(finished, variant):
    result = json.loads((finished[variant] / "result.json").read_text())
    for split in ("valid", "test"):
        assert {
            "ne",
            "ne/liked",
            "auc/liked",
            "log_loss/liked",
            "calibration/liked",
            "mse/rating",
        } <= result[split].keys()
        assert all(np.isfinite(value) for value in result[split].values())
    train_line = lines_of(finished[variant], "train")[-1]
    assert {"loss", "step_ms", "users_per_second"} <= train_line.keys()


def test_a_stream_tests_each_window_before_it_trains_on_it(finished):
    for variant in ("hstu-streaming", "dlrm-streaming"):
        lines = lines_of(finished[variant], "valid")
        assert [line["epoch"] for line in lines] == [
            1,
            2,
            3,
        ]  # windows trained on; the last has none after it
        result = json.loads((finished[variant] / "result.json").read_text())
        assert result["valid"]["ne/liked"] == lines[-1]["ne/liked"]
        # The newest parameters, not those that did best on some window.
        assert result["best_step"] == saved_steps(finished[variant])[-1]


def saved_steps(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def test_a_stream_that_stops_in_its_first_window_has_nothing_to_judge_and_keeps_what_it_tests(
    config_file, tmp_path
):
    for _ in range(2):  # the second time there is nothing left to do
        assert (
            run_train(Path(f"{config_file}:hstu-streaming"), tmp_path, "--config.train.steps=2")
            == 0
        )
        result = json.loads((tmp_path / "result.json").read_text())
        assert saved_steps(tmp_path) == [2] and result["best_step"] == 2
        assert result["valid"] == {} and lines_of(tmp_path, "valid") == []
        assert [line["step"] for line in lines_of(tmp_path, "test")] == [2]
    assert evaluate.evaluate(tmp_path, "test") == pytest.approx(result["test"], abs=1e-6)


def test_a_stream_that_stops_inside_a_later_window_tests_its_newest_parameters(
    finished, config_file, tmp_path
):
    tested = lines_of(finished["hstu-streaming"], "valid")[:2]
    step = tested[1]["step"] + 1
    assert (
        run_train(Path(f"{config_file}:hstu-streaming"), tmp_path, f"--config.train.steps={step}")
        == 0
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["best_step"] == step == saved_steps(tmp_path)[-1]
    assert evaluate.evaluate(tmp_path, "test") == pytest.approx(result["test"], abs=1e-6)
    assert [line["ne/liked"] for line in lines_of(tmp_path, "valid")] == [
        line["ne/liked"] for line in tested
    ]
    assert result["valid"]["ne/liked"] == tested[1]["ne/liked"]


@pytest.mark.parametrize(
    ("variant", "override"),
    [
        ("hstu-streaming", "--config.train.validate_every=3"),  # of four windows
        ("hstu-streaming", "--config.train.steps=1000"),
        ("dlrm-streaming", "--config.train.steps=1000"),
    ],
)
def test_a_stream_ends_with_its_last_window_and_saves_it(
    finished, config_file, tmp_path, capsys, variant, override
):
    assert run_train(Path(f"{config_file}:{variant}"), tmp_path, override) == 0
    result, whole = (
        json.loads((d / "result.json").read_text()) for d in (tmp_path, finished[variant])
    )
    assert result["best_step"] == whole["best_step"] and result["test"] == whole["test"]
    assert f"0 of {whole['best_step']} done" in capsys.readouterr().out
    assert_same_state(finished[variant], tmp_path)


@pytest.mark.parametrize("variant", ["hstu", "hstu-streaming"])
def test_a_stopped_run_resumes_to_the_same_bits(finished, config_file, tmp_path, variant):
    assert run_train(Path(f"{config_file}:{variant}"), tmp_path, "--config.train.steps=2") == 0
    assert saved_steps(tmp_path) == [2]
    assert run_train(Path(f"{config_file}:{variant}"), tmp_path, "--config.train.steps=0") == 0
    assert_same_state(finished[variant], tmp_path)


@pytest.mark.parametrize("variant", ["hstu", "dlrm-streaming"])
def test_row_wise_tables_train_to_the_quality_of_dense_ones(
    finished, config_file, tmp_path, variant
):
    assert (
        run_train(
            Path(f"{config_file}:{variant}"), tmp_path, "--config.optimizer.table=rowwise_adagrad"
        )
        == 0
    )
    names = final_state(tmp_path)
    assert names["['opt_state']['tables']['feature_table']['nu']"].any()
    rowwise, dense = (
        json.loads((d / "result.json").read_text())["test"] for d in (tmp_path, finished[variant])
    )
    assert rowwise["ne/liked"] == pytest.approx(dense["ne/liked"], abs=0.1)


def test_evaluate_repeats_the_metrics_of_the_run(finished, capsys):
    result = json.loads((finished["hstu"] / "result.json").read_text())
    assert evaluate.evaluate(finished["hstu"], "test") == pytest.approx(result["test"], abs=1e-6)
    with pytest.raises(ConfigError, match="a stream has no validation split"):
        evaluate.evaluate(finished["hstu-streaming"], "valid")


def test_stochastic_length_trains_on_fewer_tokens_and_judges_on_all(
    config_file, finished, tmp_path
):
    override = "--config.data.stochastic_length_alpha=1.5"
    assert (
        run_train(Path(f"{config_file}:hstu"), tmp_path, override, "--config.train.epochs=1") == 0
    )
    cut, whole = (json.loads((d / "result.json").read_text()) for d in (tmp_path, finished["hstu"]))
    assert cut["test"]["labels/liked"] == whole["test"]["labels/liked"]
    assert final_state(tmp_path).keys() == final_state(finished["hstu"]).keys()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["--config.ranking.tasks=('likde','rating')"],
            "config.ranking.tasks='likde'.*did you mean 'liked'",
        ),
        (["--config.ranking.valid_from=1e-9"], "ranking.valid_from=1e-09 leaves no event to train"),
        (
            ["--config.data.row_length=20"],
            "config.data.row_length=20: a sequence can have 28 tokens",
        ),
        (
            ["--config.train.windows=100000", "--config.train.mode=streaming"],
            "config.train.windows=100000",
        ),
        (
            ["--config.train.mode=streaming", "--config.train.sampling_rate=1e-12"],
            r"config.train.sampling_rate=1e-12 keeps no example: choose a greater one, or 0",
        ),
    ],
)
def test_a_ranking_run_that_cannot_be_is_refused_in_one_line(
    config_file, tmp_path, overrides, message
):
    with pytest.raises(ConfigError, match=message):
        train.main([f"--config={config_file}:hstu", f"--workdir={tmp_path / 'run'}", *overrides])


def test_labels_of_one_class_have_no_normalised_entropy_and_no_nan_and_validation_may_be_left_out(
    config_file, tmp_path
):
    only = [
        "--config.ranking.tasks=('seen',)",
        "--config.ranking.weights=()",
        "--config.train.epochs=1",
    ]
    assert (
        run_train(Path(f"{config_file}:hstu"), tmp_path, *only, "--config.ranking.valid_from=0.85")
        == 0
    )
    result = json.loads((tmp_path / "result.json").read_text())
    test = result["test"]
    assert result["valid"] == {} and not lines_of(tmp_path, "valid")
    assert "ne/seen" not in test and test["undefined/seen"] == 1
    assert all(np.isfinite(value) for value in test.values())


def test_retrieval_of_positive_events_reads_items_with_their_actions(config_file, tmp_path):
    overrides = [
        "--config.ranking.tasks=()",
        "--config.ranking.weights=()",
        "--config.loss.positive=liked",
    ]
    overrides += ["--config.model.use_actions=true", "--config.train.epochs=1"]
    assert run_train(Path(f"{config_file}:hstu"), tmp_path, *overrides) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert {"hr@10", "ndcg@10", "log_perplexity"} <= result["test"].keys()
    assert any("action_table" in name for name in final_state(tmp_path))


def test_a_run_on_a_newer_log_predicts_what_the_earlier_one_did(finished, config_file, tmp_path):
    log = tmp_path / "log"
    shutil.copytree(config_file.parent, log)
    # Items, users and values that come before all others, so that every id is another.
    for name, lines in (
        ("log", "".join(f"a{k},a1,{2 * 10**9 + k},5,0\n" for k in range(30))),
        ("users", "a0,AT\na1,BE\n"),
        ("items", "a1,also|odd\n"),
        ("device", "a0,1,car\n"),
    ):
        with (log / f"{name}.csv").open("a") as file:
            file.write(lines)
    for variant in ("hstu", "dlrm"):
        run, state = begun(finished[variant], log / "log.csv", tmp_path / variant)
        ours, theirs = trained_model(run, state.params), gr_jax.load(finished[variant])
        items = [f"i{i}" for i in range(20)]
        for user in ("u1", "u30"):
            history = theirs.history(user)[:9]
            answers = [m.score(history, items, user=user) for m in (ours, theirs)]
            for a, b in zip(*answers, strict=True):
                assert a.tasks == pytest.approx(b.tasks, abs=1e-5)
        other = {"tasks": ("liked",), "weights": ()}
        with pytest.raises(ConfigError, match="config.ranking.tasks is .* there and .* here"):
            begun(finished[variant], log / "log.csv", tmp_path / variant, ranking=other)
