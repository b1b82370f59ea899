"""Folders are complete or absent, made by one at a time, and what cannot be written is one line."""

import errno
import os
from pathlib import Path

import pytest

from gr_jax import folders
from gr_jax.config import ConfigError


@pytest.mark.parametrize("place", ["log.csv/out", "loop/out", "x" * 300])
def test_a_place_where_nothing_can_be_made_is_one_line(tmp_path, place):
    (tmp_path / "log.csv").write_text("a file")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="cannot be written .*; choose another folder") as error:
        with folders.scratch_folder(tmp_path / place):
            pass
    assert "\n" not in str(error.value)


def test_a_lock_that_cannot_be_made_is_not_waited_for(tmp_path, monkeypatch):
    """As in /proc, where a new file is refused though its folder is there."""

    def refused(path, *args, **kwargs):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(Path, "touch", refused)
    with folders.only_maker(tmp_path / "out"):
        assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_scratch_and_is_told(tmp_path):
    with pytest.raises(ConfigError, match="out: cannot be written .No space left on device"):
        with folders.scratch_folder(tmp_path / "out") as scratch:
            (scratch / "half").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as error:
        folders.sha256(tmp_path / "folder")
    assert error.value.filename == str(tmp_path / "folder")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_json_that_is_no_object_is_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.json: damaged, not .*; make it again$") as error:
        folders.read_json(tmp_path / "a.json", remedy="make it again")
    assert "\n" not in str(error.value)
