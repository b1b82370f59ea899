"""Two processes of two virtual devices each: killed, resumed, and against a run on one process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from gr_jax import train
from gr_jax.config import ConfigError
from gr_jax.training import processes
from gr_jax.training.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240  # seconds for any one wait: a busy machine is slow, a deadlock is a failure
LAST_STEP = 40

CONFIG = """
from gr_jax.config import *

def get_config(variant=""):
    return Config(
        data=DataConfig(
            source="synthetic", prepared={prepared!r}, max_length=16, row_length=32,
            synthetic=SyntheticConfig(num_users=64, num_items=192, mean_length=12),
        ),
        model=ModelConfig(width=16, num_blocks=1, qk_width=8, v_width=8),
        loss=LossConfig(kind="group", negatives=8, group=8),
        train=TrainConfig(
            epochs=10, batch_users=16, log_every=1, patience=0, checkpoint_every=7,
            validate_every=10,
        ),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    (folder / "tiny.py").write_text(CONFIG.format(prepared=str(folder / "prepared")))
    return folder


class Job:
    """Training processes of one job; none of them outlives the `with` block."""

    def __init__(self, folder: Path, workdir: Path, *, count: int, devices: int):
        command = [sys.executable, "-m", "gr_jax.train"]
        command += [f"--config={folder / 'tiny.py'}", f"--workdir={workdir}"]
        # The last of two equal flags counts.
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
        with socket.socket() as free:
            free.bind(("localhost", 0))
            coordinator = f"--coordinator=localhost:{free.getsockname()[1]}"
        self.workdir, self.logs, self.processes = workdir, [], []
        for i in range(count):
            place = [coordinator, f"--processes={count}", f"--process={i}"] if count > 1 else []
            self.logs.append(folder / f"{workdir.name}.{len(list(folder.glob('*.log')))}.log")
            with self.logs[-1].open("w") as log:
                process = subprocess.Popen(
                    [*command, *place], env=environment, stdout=log, stderr=subprocess.STDOUT
                )
                self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + LIMIT
        while last_step(self.workdir) < step:
            assert all(p.poll() is None for p in self.processes), (
                f"ended before step {step}\n{self.output()}"
            )
            assert time.monotonic() < deadline, f"no step {step}\n{self.output()}"
            time.sleep(0.02)

    def codes(self) -> list[int]:
        """The exit codes, once all have ended."""
        try:
            return [process.wait(timeout=LIMIT) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"a process does not end\n{self.output()}") from None

    def output(self) -> str:
        return "\n".join(log.read_text()[-3000:] for log in self.logs)


def last_step(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def final_state(workdir: Path) -> list[np.ndarray]:
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        assert checkpoints.newest_step() == LAST_STEP
        return jax.tree.leaves(checkpoints.newest_arrays())
    finally:
        checkpoints.close()


def result(workdir: Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """The workdir of an uninterrupted run of two processes."""
    workdir = folder / "whole"
    with Job(folder, workdir, count=2, devices=2) as job:
        assert job.codes() == [0, 0], job.output()
        assert "2 processes" in job.logs[0].read_text()
        assert "step" not in job.logs[1].read_text(), "the second process prints too"
    return workdir


def test_stopped_and_killed_processes_resume_to_the_uninterrupted_run(folder, whole):
    workdir = folder / "parts"
    with Job(folder, workdir, count=2, devices=2) as job:  # a signal to one saves and stops both
        job.wait_for_step(8)
        job.processes[1].send_signal(signal.SIGTERM)
        assert job.codes() == [128 + signal.SIGTERM] * 2, job.output()
        saved = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        assert f"interrupted: step {saved} is saved" in job.output()
    with Job(folder, workdir, count=2, devices=2) as job:  # the death of one ends the other, loudly
        job.wait_for_step(20)
        job.processes[1].kill()
        code = job.codes()[0]
        assert code not in (0, 128 + signal.SIGTERM), job.output()
        assert f"{saved} of {LAST_STEP} done: resuming" in job.logs[0].read_text()
        assert "another process ended" in job.output() or "another task died" in job.output()
    shutil.copytree(workdir, folder / "alone")
    with Job(folder, workdir, count=2, devices=2) as job:
        assert job.codes() == [0, 0], job.output()
    for ours, theirs in zip(final_state(workdir), final_state(whole), strict=True):
        # To the last bit: the same devices add in the same order.
        np.testing.assert_array_equal(ours, theirs)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["split"] == "train"]
    assert steps == sorted(set(steps)), "a step is logged twice"

    # One process, one device: other sums.
    flags = [f"--config={folder / 'tiny.py'}", f"--workdir={folder / 'alone'}", "--report=false"]
    assert train.main([*flags, "--config.mesh.data=1"]) == 0
    for ours, theirs in zip(final_state(folder / "alone"), final_state(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    for split in ("valid", "test"):
        assert result(folder / "alone")[split] == pytest.approx(result(whole)[split], abs=1e-3)
        assert result(workdir)[split] == result(whole)[split]


def test_a_mistake_on_one_process_ends_all_with_its_line(folder):
    workdir = folder / "orphan"
    (workdir / "checkpoints" / "3").mkdir(parents=True)
    with Job(folder, workdir, count=2, devices=1) as job:
        assert job.codes() == [2, 2], job.output()
        lines = [log.read_text().strip().splitlines()[-1] for log in job.logs]
    for line in lines:
        assert line.startswith("error: ") and "holds checkpoints but no config.json" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes=2"], "--processes and --process need --coordinator=HOST:PORT"),
        (
            ["--coordinator=host", "--processes=2", "--process=0"],
            "--coordinator=host: expected HOST:PORT or auto",
        ),
        (
            ["--coordinator=host:1", "--processes=2"],
            "--process=-1: must be from 0 to --processes=2 - 1",
        ),
        (
            ["--coordinator=host:1", "--processes=2", "--process=2"],
            "--process=2: must be from 0 to --processes=2 - 1",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(folder, flags, message):
    with pytest.raises(ConfigError, match=message):
        train.main([f"--config={folder / 'tiny.py'}", *flags])


def test_one_process_agrees_with_itself():
    assert processes.first_then_others(lambda: 3) == processes.on_first(lambda: 3) == 3
    assert processes.all_true(True) and not processes.all_true(False)
    assert processes.broadcast_from_first(0.1) == 0.1
