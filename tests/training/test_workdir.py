"""Two trainings that want one workdir."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gr_jax.config import ConfigError
from gr_jax.training.workdir import only_training


def enters(workdir: Path) -> bool:
    try:
        with only_training(workdir):
            return True
    except ConfigError as error:
        remedy = "wait for its end, or choose another --workdir"
        assert str(error) == f"{workdir}: another training runs there; {remedy}"
        return False


def test_a_workdir_has_one_training_at_a_time(tmp_path):
    with only_training(tmp_path / "new" / "w"):
        assert not enters(tmp_path / "new" / "w")
        assert enters(tmp_path / "other")
    assert enters(tmp_path / "new" / "w")


def test_a_training_that_fails_leaves_the_workdir_to_the_next(tmp_path):
    with pytest.raises(ValueError, match="loss"), only_training(tmp_path):
        raise ValueError("loss")
    assert enters(tmp_path)


def test_a_killed_process_holds_nothing(tmp_path):
    lock = str(tmp_path / ".lock")
    program = f"import fcntl; f = open({lock!r}, 'a'); fcntl.flock(f, fcntl.LOCK_EX); "
    program += "print(1, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"1\n"
    assert not enters(tmp_path)
    process.kill()
    process.communicate()
    assert enters(tmp_path)


def test_a_file_system_without_locks_does_not_stop_a_training(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert enters(tmp_path)
