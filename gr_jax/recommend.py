"""Recommend items to a user of the log, or to all of them, by a trained model.

    python -m gr_jax.recommend --workdir=runs/ml_1m --user=42 -k 10
    python -m gr_jax.recommend --workdir=runs/ml_1m --user=42 --json
    python -m gr_jax.recommend --workdir=runs/clicks --user=42 --data=newer.csv
    python -m gr_jax.recommend --workdir=runs/ml_1m --users=all -k 10 --out=lists.parquet

The history is all events of the user in the log that the run was trained on, or in that of --data.
Its items are not recommended again, unless the run was evaluated so (`evaluate.exclude=none`) or
--exclude-seen says so.

With --users the lists go to a file with the columns user, item, rank and score, which is whole or
absent; the same command goes on after a kill. Several machines share the users by
--shard=0/4 to --shard=3/4, each with an --out of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gr_jax import cli
from gr_jax.config import ConfigError
from gr_jax.errors import shown
from gr_jax.serving import user_lists
from gr_jax.serving.answer import Answer
from gr_jax.serving.id_files import read_ids
from gr_jax.serving.load import load
from gr_jax.serving.model import TrainedModel
from gr_jax.training.console import say, table

EVERY = 10  # seconds between two lines of progress, where there is no terminal

FLAGS: dict[str, cli.Flag] = {
    "workdir": (Path, cli.REQUIRED, "folder of a trained run"),
    "user": (str, "", "raw id of a user of the log"),
    "users": (str, "", "all, or a file of raw ids: one a line, or a column of CSV or Parquet"),
    "out": (Path, None, "with --users: the file of the lists, .parquet or .csv"),
    "k": (int, 10, "number of items; -k 10 is the same"),
    "at_time": (
        str,
        "",
        "when they would be taken: unix seconds, ISO text or now; default: at the last event",
    ),
    "exclude_seen": (
        ("judged", "true", "false"),
        "judged",
        "false lets items of the history come; judged = as in evaluate.exclude",
    ),
    "allow": (Path, None, "file of the only items that may come"),
    "deny": (Path, None, "file of items that may not come"),
    "task": (str, "", "ranking: the task whose prediction orders the items; default: the first"),
    "data": (
        str,
        "",
        "newer log, for histories as they are now; default: as they were at the training",
    ),
    "shard": (str, "0/1", "with --users: I/N, the users whose hash is I modulo N, from 0"),
    "json": (bool, False, "with --user: print JSON"),
}


def main(argv: list[str]) -> int:
    """Print the best items for a user as a table or as JSON, or write those of many users."""
    args = cli.parse(argv, doc=__doc__, flags=FLAGS, config="none")
    if bool(args.user) == bool(args.users):
        raise ConfigError("--user=ID, or --users=all|FILE with --out=FILE, must be given")
    if bool(args.users) != bool(args.out):
        raise ConfigError("--users=all|FILE and --out=FILE go together")
    shard = _shard(args.shard)
    if args.users:
        user_lists.check_name(args.out)
    model = load(args.workdir, data=args.data)
    allow, deny = (_items(model, file) for file in (args.allow, args.deny))
    exclude_seen = {"judged": None, "true": True, "false": False}[args.exclude_seen]
    chosen = {"exclude_seen": exclude_seen, "allow": allow, "deny": deny or (), "task": args.task}
    at_time = _number_or_text(args.at_time) if args.at_time else None
    if args.users:
        return _many(model, args, shard, at_time, chosen)

    history = model.history(args.user)
    answer = model.recommend(history, args.k, at_time, user=args.user, **chosen)
    if args.json:
        found = {"user": args.user, "events": len(history), **dataclasses.asdict(answer)}
        say(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        skipped = f", {answer.skipped:,} of them of unknown items" if answer.skipped else ""
        say(f"user {args.user}, {len(history):,} events{skipped}\n\n{_as_table(answer)}")
    return 0


def _many(
    model: TrainedModel,
    args: argparse.Namespace,
    shard: tuple[int, int],
    at_time: float | str | None,
    chosen: dict,
) -> int:
    """Write the lists of many users."""
    start = time.monotonic()
    wanted = model.wanted(args.k, at_time, **chosen)
    users = None if args.users == "all" else _known_users(model, Path(args.users))
    is_now = at_time == "now"
    lists = user_lists.Lists(wanted, model.id_types, model.version, users, shard, is_now)
    with _progress() as told:
        count = user_lists.write(model.log_users, model.raw_items, lists, args.out, told=told)
    seconds = time.monotonic() - start
    say(f"{args.out}: lists of {count:,} users in {seconds:.0f} s")
    return 0


def _known_users(model: TrainedModel, file: Path) -> pl.Series:
    """The users of a file that the log has; the others are counted."""
    ids = read_ids(file, ("user", model.columns[0]))
    known = ids.filter(ids.is_in(model.log_users.catalogue.users["raw"].implode()))
    if not len(known):
        raise ConfigError(f"{file}: the log has none of its users, such as {shown(ids[0])}")
    if missing := len(ids) - len(known):
        say(f"{file}: {missing:,} of {len(ids):,} users are not in the log: left out")
    return known


def _items(model: TrainedModel, file: Path | None) -> list[str] | None:
    return None if file is None else read_ids(file, ("item", model.columns[1])).to_list()


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ConfigError(f"--shard={shown(text)}: expected I/N with I from 0 to N - 1, as 0/4")
    return int(number), int(count)


def _number_or_text(text: str) -> float | str:
    """Unix seconds of the flag --at-time, or its text."""
    try:
        return float(text)
    except ValueError:
        return text


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """`told(done, total)`: a bar on a terminal, lines elsewhere."""
    if sys.stdout.isatty():
        bar = Progress(
            TextColumn("users"),
            BarColumn(),
            TextColumn("{task.completed:,} of {task.total:,}"),
            TimeRemainingColumn(),
        )
        with bar:
            task = bar.add_task("users", total=0)  # until the first part is told
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    start = last = time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > EVERY:
            last, rate = now, done / (now - start)
            left = (total - done) / rate
            say(f"users  {done:,} of {total:,}  {rate:,.0f} users/s  {left:,.0f} s left")

    yield told


def _as_table(answer: Answer) -> str:
    """Titles, raw ids and scores, best first."""
    tasks = list(answer.items[0].tasks or ()) if answer.items else []
    titled = any(item.title for item in answer)
    rows = [("title",) * titled + ("item", *(tasks or ["score"]))]
    for item in answer:
        values = [(item.tasks or {})[task] for task in tasks] or [item.score]
        rows.append(
            ((item.title or "",) * titled) + (item.item, *(f"{value:.4f}" for value in values))
        )
    return table(rows)


if __name__ == "__main__":
    cli.run(main)
