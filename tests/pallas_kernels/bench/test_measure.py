"""The parts of the benchmark: errors against the reference, jagged rows, fair timing."""

import jax
import numpy as np

from pallas_kernels import dispatch
from pallas_kernels.bench import measure, rivals, timing
from pallas_kernels.specs import SPECS


def test_a_wrong_result_shows_as_an_error(monkeypatch):
    monkeypatch.setattr(measure, "SLICE", 16)  # of 64 tokens
    spec, arrays = SPECS["tiny-bias"], measure.input_sets(SPECS["tiny-bias"], 1)[0]
    out, gradients = measure.functions(dispatch.load("xla"), spec)["forward_backward"](
        jax.tree.map(jax.numpy.array, arrays)
    )
    wrong = out.at[0, 1].add(out.max())
    assert measure.errors((wrong, gradients), arrays, spec)["out"] > 0.1
    wrong = gradients | {"k": gradients["k"].at[0, -6].add(gradients["k"].max())}
    found = measure.errors((out, wrong), arrays, spec)
    assert found["d_k"] > 0.1 and max(found["out"], found["d_q"], found["d_v"]) < 1e-5


def test_the_jagged_form_of_rows_has_no_padding():
    segments = np.array([[1, 1, 2, 0], [1, 0, 2, 2], [2, 2, 0, 0]], np.int32)
    arrays = {"segments": segments, "q": np.arange(12).reshape(3, 4), "table": np.zeros(5)}
    tokens, offsets = rivals.jagged(arrays)
    assert tokens["q"].tolist() == [0, 1, 2, 4, 6, 7, 8, 9] and "table" not in tokens
    assert offsets.tolist() == [0, 2, 3, 4, 6, 8]


def test_programs_are_timed_in_turn_with_inputs_in_turn():
    calls = []
    programs = {
        name: timing.Program(lambda i, name=name: calls.append((name, i)), lambda _: None)
        for name in "ab"
    }
    timed = timing.interleaved(programs, rounds=4, burst_seconds=0.0)
    assert [name for name, _ in calls[-8:]] == list("abababab")
    assert [i for name, i in calls[-8:] if name == "a"] == [0, 1, 2, 3]
    assert timed["a"]["calls"] == 1 and timed["b"]["ms"] >= timed["b"]["min_ms"] >= 0
