"""The benchmark command on a CPU, end to end on the tiny shape."""

import json

import jax
import pytest

from pallas_kernels import dispatch, specs
from pallas_kernels.bench import measure
from pallas_kernels.bench.__main__ import main, select
from pallas_kernels.specs import SPECS


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The records of a run, by implementation, and its JSON file."""
    path = tmp_path_factory.mktemp("bench") / "out" / "bench.json"
    code = main(
        ["--shape=tiny-bias", "--implementation=xla,pallas_triton,cudnn,peer", f"--json={path}"]
    )
    assert code == 0
    content = json.loads(path.read_text())
    return {record["implementation"]: record for record in content["results"]}, path, content


def test_a_run_writes_times_memory_and_errors(result):
    records, _, content = result
    assert content["platform"] == "cpu" and content["versions"]["jax"] == jax.__version__
    record = records["xla"]
    for part in ("forward", "backward", "forward_backward"):
        assert record[part]["ms"] > 0 or part == "backward"  # a difference of two small times
    forward = record["forward"]
    assert forward["tflops"] == pytest.approx(specs.flops(SPECS["tiny-bias"]) / forward["ms"] / 1e9)
    assert set(record["error_of_largest"]) == {"out", "d_q", "d_k", "d_v"}
    assert max(record["error_of_largest"].values()) < 1e-5
    assert record["memory"]["forward_backward"]["temp_bytes"] > 0


def test_an_implementation_that_cannot_run_here_is_listed_with_its_reason(result):
    records, _, _ = result
    for name in ("pallas_triton", "cudnn", "peer"):
        assert "GPU" in records[name]["skipped"]


def test_resume_keeps_the_results_that_are_there(result, capsys):
    _, path, content = result
    capsys.readouterr()
    assert (
        main(["--shape=tiny-bias", "--implementation=xla,cudnn", f"--json={path}", "--resume"]) == 0
    )
    assert capsys.readouterr().out == ""
    assert json.loads(path.read_text())["results"] == content["results"]


def test_one_failing_case_does_not_lose_the_others(monkeypatch, capsys, tmp_path):
    def load(name):
        def fails(*_):
            raise RuntimeError("out of\nmemory")

        return fails if name == "reference" else real(name)

    real = dispatch.load
    monkeypatch.setattr(dispatch, "load", load)
    assert (
        main(["--shape=tiny", "--implementation=reference,xla", f"--json={tmp_path / 'b.json'}"])
        == 0
    )
    records = {
        r["implementation"]: r for r in json.loads((tmp_path / "b.json").read_text())["results"]
    }
    assert records["reference"]["error"] == "RuntimeError: out of memory"
    assert "ms" in records["xla"]["forward"]


def test_a_spent_budget_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(
        measure,
        "bench_shape",
        lambda spec, names, peer: {name: {"skipped": "stub"} for name in names},
    )
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(measure.time, "monotonic", lambda: next(clock))
    path = tmp_path / "b.json"
    assert (
        main(["--shape=tiny,tiny-bias", "--implementation=xla", "--seconds=15", f"--json={path}"])
        == 0
    )
    reasons = [record["skipped"] for record in json.loads(path.read_text())["results"]]
    assert reasons == ["stub", "the budget of 15 s is spent"]


@pytest.mark.parametrize(
    "flag,near",
    [("--shape=4x128-l409", "4x128-l4096"), ("--implementation=pallas_tritn", "pallas_triton")],
)
def test_a_wrong_name_is_one_line_with_the_nearest_name(flag, near, capsys):
    with pytest.raises(SystemExit) as stop:
        main([flag])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert near in message and message.count("\n") == 1


def test_tuning_without_a_gpu_changes_nothing(capsys, tmp_path):
    table = tmp_path / "table.json"
    assert main(["--tune", "--shape=tiny", f"--table={table}"]) == 1
    assert not table.exists()
    assert "GPU" in capsys.readouterr().out


def test_names_and_globs_select_shapes_once():
    assert select("tiny,tin*", list(SPECS), "--shape") == ["tiny", "tiny-bias"]
