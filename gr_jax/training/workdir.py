"""One training at a time in a workdir: a second one would remove the checkpoints that the first is writing."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from gr_jax.config import ConfigError
from gr_jax.training import processes


@contextlib.contextmanager
def only_training(workdir: Path) -> Iterator[None]:
    """Inside the `with` block no other training enters one for `workdir`, which is made when it is not there.

    Of several processes the first holds the lock. The kernel releases it however that process ends. What only reads a
    workdir does not ask for it.

    Raises:
      ConfigError: another training is in its block.
    """
    file = processes.first_then_others(lambda: _lock(workdir) if processes.is_first() else None)
    try:
        yield
    finally:
        if file is not None:
            file.close()


def _lock(workdir: Path) -> TextIO:
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / ".lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            f"{workdir}: another training runs there; wait for its end, or choose another --workdir"
        ) from None
    except OSError:  # a file system without locks
        pass
    return file
