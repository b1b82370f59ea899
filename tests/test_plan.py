import json
from pathlib import Path

import pytest

from gr_jax import plan
from gr_jax.config import ConfigError
from gr_jax.models.flops import train_flops

ROOT = Path(__file__).resolve().parents[1]
ML_1M = f"--config={ROOT}/configs/ml_1m.py"
SIZES = ["--items=3706", "--mean_length=165"]


def planned(capsys, *words: str) -> dict:
    code = plan.main([*words, "--json"])
    out = json.loads(capsys.readouterr().out)
    assert code == (0 if out["fits"] else 1)
    return out


def test_a_plan_shows_memory_traffic_time_and_formulas(capsys):
    assert plan.main([ML_1M, *SIZES, "--devices=8", "--device=h100"]) == 0
    text = capsys.readouterr().out
    for word in (
        "optimizer state",
        "activations kept",
        "all-reduce",
        "compute",
        "MFU",
        "It fits",
        "formula",
    ):
        assert word in text


def test_the_trillion_parameters_of_the_paper_fit_with_a_row_wise_rule_and_not_with_adamw(capsys):
    out = planned(
        capsys, f"--config={ROOT}/configs/amazon.py:trillion", "--devices=256", "--device=h100"
    )
    assert (
        1.5e12 < out["parameters"] < 1.51e12 and out["table_parameters"] > 0.999 * out["parameters"]
    )
    by_name = {part["what"]: part["bytes"] for part in out["memory"]}
    assert by_name["parameters"] == pytest.approx(4 * 1.5e12 / 256, rel=0.03)
    assert by_name["optimizer state"] == pytest.approx(8 * 1.5e12 / 256, rel=0.03)
    assert not out["fits"]
    limit = 0.9 * out["device"]["memory"]
    assert any(
        "rowwise_adagrad" in way["change"] and way["memory_bytes"] < limit
        for way in out["remedies"]
    )


def test_step_time_is_the_roofline_of_its_terms(capsys):
    out = planned(capsys, ML_1M, *SIZES, "--devices=8", "--link_gbs=1", "--f32_tflops=100")
    seconds = {term["what"]: term["amount"] / term["rate"] for term in out["terms"]}
    links = sum(time for what, time in seconds.items() if what.startswith("links"))
    assert out["step_seconds"] == pytest.approx(max(seconds["compute"], seconds["memory"]) + links)
    assert out["mfu"] == pytest.approx(out["model_flops"] / (out["step_seconds"] * 8 * 100e12))
    assert links > 0.9 * out["step_seconds"]


def test_flops_are_those_that_training_reports(capsys):
    from gr_jax.config.files import load
    from gr_jax.planning.sizes import sizes_of

    config = load(f"{ROOT}/configs/ml_1m.py")
    sizes = sizes_of(config, items=3706, mean_length=165.0, shards=1)
    out = planned(capsys, ML_1M, *SIZES, "--devices=1")
    per_user = train_flops(config, sizes.lengths, num_items=3706) / len(sizes.lengths)
    assert out["model_flops"] == pytest.approx(per_user * config.train.batch_users)


def test_a_prepared_log_gives_the_sizes(tmp_path, capsys):
    log, ready = tmp_path / "log.csv", tmp_path / "ready"
    rows = [f"u{u},i{(u * 7 + t) % 40},{1000 * t}" for u in range(50) for t in range(12)]
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    config = tmp_path / "mine.py"
    config.write_text(
        "from gr_jax.config import Config, DataConfig, TrainConfig\n"
        "def get_config():\n"
        f"    places = {{'path': {str(log)!r}, 'prepared': {str(ready)!r}}}\n"
        "    data = DataConfig(**places, max_length=16, row_length=32)\n"
        "    return Config(data=data, train=TrainConfig(batch_users=10))\n"
    )
    out = planned(capsys, f"--config={config}", "--devices=2")
    assert out["sizes"]["items"] == 40
    assert out["sizes"]["users_per_batch"] == pytest.approx(10, rel=0.3)
    assert out["sizes"]["batch_rows"] % 2 == 0


def test_a_config_without_data_asks_for_the_sizes(tmp_path):
    with pytest.raises(ConfigError, match="--items=N --mean_length=EVENTS"):
        plan.main([ML_1M, f"--config.data.path={tmp_path}", "--devices=1"])


@pytest.fixture
def small_hstu(tmp_path, monkeypatch) -> list[str]:
    # the tests have their eight devices
    monkeypatch.setattr(plan.jax.config, "update", lambda *_: None)
    config = tmp_path / "small.py"
    config.write_text(
        "from gr_jax.config import *\n"
        "def get_config():\n"
        "    data = DataConfig(max_length=16, row_length=32)\n"
        "    model = ModelConfig(width=8, ffn_width=8, num_blocks=1)\n"
        "    return Config(data=data, model=model, train=TrainConfig(batch_users=8))\n"
    )
    return [f"--config={config}", "--items=50", "--mean_length=12", "--devices=2"]


@pytest.fixture
def small_sasrec(small_hstu) -> list[str]:
    return [*small_hstu, "--config.model.kind=sasrec"]


def test_on_a_cpu_the_memory_is_that_of_the_compiled_step(small_hstu, capsys):
    out = planned(capsys, *small_hstu, "--device=cpu")
    parts = {part["what"]: part["bytes"] for part in out["memory"]}
    assert out["memory_bytes"] == sum(parts.values()) == out["compiled"]["peak"]
    assert parts["parameters"] > 4 * 51 * 8 / 2 and parts["activations, gradients"] > 0
    assert out["terms"] and out["remedies"] == []
    assert plan.main([*small_hstu, "--device=cpu", "--memory_gb=0.00001"]) == 1
    text = capsys.readouterr().out
    assert "XLA's buffer assignment" in text and "It does not fit" in text


def test_compiling_for_a_gpu_stands_beside_its_plan(small_hstu, capsys):
    alone, beside = planned(capsys, *small_hstu), planned(capsys, *small_hstu, "--compile")
    assert alone["compiled"] is None and beside["compiled"]["peak"] > 0
    assert beside["memory"] == alone["memory"]


def test_a_kind_that_the_formulas_do_not_know_is_compiled_alone(small_sasrec, capsys):
    with pytest.raises(
        ConfigError, match="the formulas know hstu without SwiGLU; --compile asks the compiler"
    ):
        plan.main(small_sasrec)
    assert plan.main([*small_sasrec, "--compile"]) == 0
    text = capsys.readouterr().out
    assert "GiB on a virtual CPU device" in text and "It fits" in text and "the plan is" not in text
    assert plan.main([*small_sasrec, "--compile", "--memory_gb=0.00001"]) == 1
    assert "It does not fit" in capsys.readouterr().out
    out = planned(capsys, *small_sasrec, "--compile")
    assert out["compiled"]["peak"] > 4 * 51 * 8 * 3 / 2 and out["mesh"] == {"data": 2, "model": 1}


def test_impressions_cannot_be_planned():
    with pytest.raises(
        ConfigError, match="config.model.kind='dlrm': only steps of sequence models"
    ):
        plan.main([f"--config={ROOT}/configs/ml_1m.py:ranking-dlrm", *SIZES, "--devices=1"])


def test_a_mesh_of_another_size_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match="--devices=8: config.mesh.data=3 x config.mesh.model=2"):
        plan.main([ML_1M, *SIZES, "--devices=8", "--config.mesh.data=3", "--config.mesh.model=2"])
