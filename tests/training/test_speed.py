from types import SimpleNamespace

import pytest

from gr_jax.hardware import DEVICES
from gr_jax.training import speed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_of_training_is_the_one_that_a_plan_divides_by(dtype, monkeypatch):
    gpus = [SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")] * 4
    monkeypatch.setattr(speed.jax, "devices", lambda: gpus)
    monkeypatch.setattr(speed.jax, "device_count", lambda: len(gpus))
    assert speed.peak_flops(dtype) == 4 * DEVICES["h100"].flops(dtype)


def test_the_meter_leaves_out_compilation_and_pauses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(speed, "peak_flops", {"float32": 1000.0}.__getitem__)
    cost = speed.StepCost(users=4.0, tokens=40.0, fill=0.5, flops=100.0)
    meter = speed.SpeedMeter(cost, "float32")
    assert not meter.unreported
    now[0] = 60.0  # compiling
    meter.add(3.0)
    now[0] = 61.0
    meter.add(2.0)
    meter.pause()
    now[0] = 100.0  # validating
    meter.resume()
    now[0] = 101.0
    meter.add(1.0)
    values = meter.report()
    assert values["loss"] == 2.0
    assert values["step_ms"] == pytest.approx(1000)
    assert values["users_per_second"] == pytest.approx(4)
    assert values["tokens_per_second"] == pytest.approx(40)
    assert values["mfu"] == pytest.approx(0.1)
    assert not meter.unreported
