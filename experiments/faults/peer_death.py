"""Seconds that the other process of a job of two goes on after one dies or falls silent.

    # about 3 minutes
    python -m experiments.faults.peer_death --json=experiments/results/peer_death.json

Two processes on this machine train on the generated log, one CPU device each. Once steps are taken,
one of them gets signal 9, as from a lack of memory, or signal STOP, as a host whose network is
gone. Kept are the seconds until the other has ended, and its exit code (-6: aborted by the JAX
runtime).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.common.results import ROOT, arguments, command_line, keep
from experiments.faults.kill_resume import last_step

TIMEOUT = 30  # seconds of silence after which a process counts as dead
OVERRIDES = {
    "data.synthetic.num_users": 1000,
    "train.epochs": 10_000,
    "train.patience": 0,
    "train.log_every": 1,
}


def start(folder: Path, process: int, port: int) -> subprocess.Popen:
    """One process of two."""
    said = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
    said += [f"--config.data.prepared={folder / 'prepared'}", f"--workdir={folder / 'run'}"]
    place = [
        f"--coordinator=localhost:{port}",
        "--processes=2",
        f"--process={process}",
        f"--peer-timeout={TIMEOUT}",
    ]
    command = [sys.executable, "-m", "gr_jax.train", "--config=configs/synthetic.py", *said, *place]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "PYTHONPATH": str(ROOT)}
    log = (folder / f"{process}.log").open("w")
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **flags}, stdout=log, stderr=log)


def seconds_until_the_other_ends(dying: int, by: signal.Signals) -> tuple[float, int]:
    """Seconds from a signal to process `dying` to the end of the other, and its exit code.

    The signal is sent once both have taken steps.

    Raises:
      RuntimeError: the other did not end, or one ended before.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = [start(folder, process, port) for process in range(2)]
        try:
            while last_step(folder / "run") < 20:
                if any(process.poll() is not None for process in processes):
                    raise RuntimeError(f"ended too early: {(folder / '0.log').read_text()[-2000:]}")
                time.sleep(0.05)
            processes[dying].send_signal(by)
            begin = time.monotonic()
            code = processes[1 - dying].wait(timeout=10 * TIMEOUT)
            return time.monotonic() - begin, code
        except subprocess.TimeoutExpired:
            raise RuntimeError("the other process does not end") from None
        finally:
            for process in processes:
                process.kill()
                process.wait()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--json", default="", help="file for the result")
    args = parser.parse_args()
    cases = []
    for by in (signal.SIGKILL, signal.SIGSTOP):
        for dying in (1, 0):
            seconds, code = seconds_until_the_other_ends(dying, by)
            cases.append(
                {
                    "signal": by.name,
                    "process": dying,
                    "seconds": round(seconds, 1),
                    "exit_code": code,
                }
            )
            print(json.dumps(cases[-1]), flush=True)
    if args.json:
        result = {
            "command": command_line(),
            "peer_timeout": TIMEOUT,
        }
        result |= {"machine": f"{os.cpu_count()} CPU cores, shared with other work", "cases": cases}
        keep(args.json, result)


if __name__ == "__main__":
    main()
