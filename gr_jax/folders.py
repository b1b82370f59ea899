"""Folders that others read: complete or absent, made by one process, checked by checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from gr_jax.config.checks import ConfigError

if TYPE_CHECKING:
    import filelock

_THREADS = 8  # that read files for their checksums


def read_json(path: Path, *, remedy: str) -> dict:
    """The JSON object in a file.

    Raises:
      ConfigError: it is missing, cannot be read or is no JSON object; ends in the remedy.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else error.strerror
        raise ConfigError(f"{path}: {reason}; {remedy}") from None
    except (ValueError, RecursionError):  # text that is no UTF-8, numbers of 5,000 digits, ...
        raise ConfigError(f"{path}: damaged, not JSON; {remedy}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: damaged, not a JSON object; {remedy}")
    return value


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
      OSError: it cannot be read; names it, as the system does not where reading fails.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def checksums(paths: Iterable[Path]) -> list[str]:
    """The SHA-256 of each file, a thread a file: about 1 GB a second and core (SHA extensions)."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(sha256, paths))


def manifest(folder: Path) -> dict[str, dict[str, int | str]]:
    """Size in bytes and SHA-256 of every file in a folder: what `check_manifest` compares."""
    paths = sorted(folder.iterdir())
    sums = zip(paths, checksums(paths), strict=True)
    return {path.name: {"size": path.stat().st_size, "sha256": digest} for path, digest in sums}


def check_manifest(folder: Path, listed: Mapping[str, Mapping], *, lists: str, remedy: str) -> None:
    """Check that a folder has the listed files, byte for byte, and no other; hidden ones may be.

    Args:
      lists: the file that has the list, and so is not in it.

    Raises:
      ConfigError: the first file, by name, that is missing, damaged or superfluous, and the remedy.
    """
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {lists}
    for name in sorted({*listed, *there}):
        path = folder / name
        if name not in listed:
            raise ConfigError(f"{path}: does not belong to this folder; remove it, or {remedy}")
        if name not in there or not path.is_file():
            raise ConfigError(f"{path}: missing; {remedy}")
        size, expected = path.stat().st_size, listed[name].get("size")
        if size != expected:
            raise ConfigError(f"{path}: damaged, {size:,} bytes instead of {expected:,}; {remedy}")
    names = sorted(listed)
    for name, digest in zip(names, checksums(folder / name for name in names), strict=True):
        if digest != listed[name].get("sha256"):
            raise ConfigError(f"{folder / name}: damaged, its checksum is another; {remedy}")


def take_lock(folder: Path, *, taken: str) -> filelock.BaseFileLock:
    """The lock of a folder, which is made if it is not there; without waiting.

    The kernel releases it however the process ends. On a file system without locks there is none.

    Args:
      taken: what to say if another process has it.

    Raises:
      ConfigError: another process has it.
    """
    import filelock  # takes 60 ms, and most readers of files take no lock

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    path.touch()
    # Without the fallback, whose lock would outlive a killed process.
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ConfigError(taken) from None
    except OSError:  # a file system without locks
        pass
    return lock


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, to be filled, that becomes `folder` at the end or vanishes.

    Raises:
      OSError: it cannot be written, or `folder` is there already and not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=_scratch_prefix(folder), dir=folder.parent))
    try:
        yield building
        building.chmod(0o777 & ~_umask())  # mkdtemp makes it private; others may share it
        os.rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` for what its maker needs meanwhile; removed at the end.

    Raises:
      ConfigError: it cannot be written, or the disk is full.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(prefix=_scratch_prefix(folder), dir=folder.parent)
    except OSError as error:
        raise unwritable(folder, error) from None
    try:
        yield Path(name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise unwritable(folder, error) from None
        raise
    finally:
        shutil.rmtree(name, ignore_errors=True)


@contextlib.contextmanager
def only_maker(folder: Path) -> Iterator[None]:
    """Hold a lock beside `folder`, so that one process at a time makes it.

    What killed makers left beside it is removed. The lock file stays, since a process that waits
    for one that is removed holds another lock than a process that comes later. On a file system
    without locks there is none: the folder then becomes whoever's is complete first.

    Raises:
      ConfigError: the folder around it cannot be made.
    """
    import filelock  # takes 60 ms, and most readers of files make no folder

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from None
    path = folder.parent / f".{folder.name}.lock"
    lock = filelock.FileLock(path, fallback_to_soft=False)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            path.touch()  # where that fails, filelock would try for ever
            held.enter_context(lock.acquire())
        if lock.is_locked:
            for path in folder.parent.iterdir():
                if re.fullmatch(re.escape(_scratch_prefix(folder)) + "[a-z0-9_]{8}", path.name):
                    shutil.rmtree(path, ignore_errors=True)
        yield


def unwritable(path: Path, error: Exception) -> ConfigError:
    """The one line for a path that cannot be written."""
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"{path}: cannot be written ({reason}); choose another folder")


def _scratch_prefix(folder: Path) -> str:
    return f".{folder.name}.building-"


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
