"""The lists of all users in a file: computed in parts, so that memory does not grow with users.

Parts lie in a folder beside the file until the last is there; a process that was killed goes on
with the parts that it finds. A part is known by everything that decides what is in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int

from gr_jax import folders
from gr_jax.config import ConfigError
from gr_jax.data import hashing
from gr_jax.files import write_whole
from gr_jax.serving import tables
from gr_jax.serving.all_users import LogUsers, Wanted, places

USERS = 8192  # of a part
FORMATS = (".parquet", ".csv")
_PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class Lists:
    """What goes into a file.

    Attributes:
      wanted: which items may come. types: of the ids. model: what made the model, as a short text.
      users: raw ids; None = all users of the log.
      shard: i of n: the users whose hash is i modulo n.
      is_now: True if `wanted.at_time` is the present, which stays that of the first start.
    """

    wanted: Wanted
    types: tables.IdTypes
    model: str
    users: pl.Series | None = None
    shard: tuple[int, int] = (0, 1)
    is_now: bool = False


def write(
    log: LogUsers,
    raw_items: pl.Series,
    lists: Lists,
    out: Path,
    *,
    told: Callable[[int, int], None],
) -> int:
    """Write a table `user, item, rank, score`, whole or not at all; the number of its users.

    Args:
      log: the users.
      raw_items: ids of items 1, 2, ..
      lists: which lists.
      out: .parquet or .csv; what is there is replaced.
      told: called with the users done, and how many there are.

    Raises:
      ConfigError: `out` cannot be written, or is of another kind. RequestError: as
        `LogUsers.asked`.
    """
    check_name(out)
    parts = out.with_name(f"{out.name}.parts")
    write_part = _writer(out)
    chosen = None if lists.users is None else places(lists.users, log.catalogue.users["raw"])
    size = len(log) if chosen is None else len(chosen)
    if lists.wanted.at_time is not None:  # before anything is computed
        log.asked(np.arange(size) if chosen is None else chosen, lists.wanted.at_time)
    count = 0
    try:
        with _only_writer(parts):
            wanted = _begun(parts, lists, _plan(log, lists))
            for number, start in enumerate(range(0, size, USERS)):
                part = parts / f"{number:07}{out.suffix}"
                end = min(start + USERS, size)
                users, names = _users(log, lists, chosen, start, end)
                count += len(users)
                if not part.is_file():
                    found = log.best(users, wanted)
                    table = tables.ranked(names.cast(lists.types.user), raw_items, *found)
                    _placed(part, functools.partial(write_part, table))
                told(end, size)
            there = sorted(parts.glob(f"*{out.suffix}"))
            _placed(out, functools.partial(_joined, there))
            shutil.rmtree(parts)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise folders.unwritable(out, error) from None
    return count


def check_name(out: Path) -> None:
    """Raise a ConfigError for a file that `write` does not take."""
    if out.suffix not in FORMATS:
        raise ConfigError(f"{out}: the name of a file of lists ends in {' or '.join(FORMATS)}")
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder, not a file")


def _writer(out: Path) -> Callable[[pl.DataFrame, Path], None]:
    if out.suffix == ".csv":
        return pl.DataFrame.write_csv
    return pl.DataFrame.write_parquet


def _users(
    log: LogUsers, lists: Lists, chosen: Int[np.ndarray, " _"] | None, start: int, end: int
) -> tuple[Int[np.ndarray, " B"], pl.Series]:
    """The users of a part, and their raw ids."""
    if chosen is None or lists.users is None:
        users, names = np.arange(start, end), log.names(start, end)
    else:
        users, names = chosen[start:end], lists.users[start:end]
    shard, shards = lists.shard
    if shards > 1:
        mine = hashing.splitmix64(hashing.keys(names)) % np.uint64(shards) == shard
        users, names = users[mine], names.filter(mine)
    return users, names.alias("user")


def _plan(log: LogUsers, lists: Lists) -> dict:
    """Everything that decides what the parts hold."""
    wanted = lists.wanted
    digest = hashlib.sha256(wanted.allowed.tobytes())
    if lists.users is not None:
        digest.update("\n".join(lists.users).encode())
    options = {name: getattr(wanted, name) for name in ("k", "left_out", "at_time", "task")}
    return options | {
        "model": lists.model,
        "log": log.catalogue.meta["hash"],
        "lists": digest.hexdigest(),
        "shard": list(lists.shard),
        "part": USERS,
        "types": [str(kind) for kind in lists.types],
    }


@contextlib.contextmanager
def _only_writer(parts: Path) -> Iterator[None]:
    """Make the folder of the parts, and keep other processes out of it."""
    taken = "another process writes these lists; wait for its end"
    lock = folders.take_lock(parts, taken=f"{parts}: {taken}")
    try:
        yield
    finally:
        lock.release()


def _begun(parts: Path, lists: Lists, plan: dict) -> Wanted:
    """What is wanted; parts that are there stay if they are of this plan."""
    file, before = parts / _PLAN, {}
    with contextlib.suppress(OSError, ValueError):
        before = dict(json.loads(file.read_text()))
    if lists.is_now:
        plan = plan | {"at_time": before.get("at_time", plan["at_time"])}
    if before != plan:
        for other in parts.iterdir():
            if other.name != ".lock":
                other.unlink()
        if lists.is_now:
            plan = plan | {"at_time": lists.wanted.at_time}
        write_whole(file, json.dumps(plan) + "\n")
    return dataclasses.replace(lists.wanted, at_time=plan["at_time"])


def _placed(file: Path, write: Callable[[Path], None]) -> None:
    """Write a file so that it is whole or absent."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _joined(parts: list[Path], file: Path) -> None:
    """The parts one after the other."""
    if parts[0].suffix == ".csv":
        with open(file, "wb") as whole:
            for number, part in enumerate(parts):
                with open(part, "rb") as lines:
                    if number:
                        lines.readline()  # the header
                    shutil.copyfileobj(lines, whole)
        return
    pl.scan_parquet(parts, glob=False).sink_parquet(file, maintain_order=True)
