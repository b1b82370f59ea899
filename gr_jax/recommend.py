"""Recommend items to a user of the log, by a trained model.

    python -m gr_jax.recommend --workdir=runs/ml_1m --user=42 -k 10
    python -m gr_jax.recommend --workdir=runs/ml_1m --user=42 --json
    python -m gr_jax.recommend --workdir=runs/ml_1m --user=42 --seen=true    # items come again
    python -m gr_jax.recommend --workdir=runs/clicks --user=42 --data=newer.csv

The history is all events of the user in the log that the run was trained on, or in that of --data.
Its items are not recommended again, unless the run was evaluated so (`evaluate.exclude=none`) or
--seen says so.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from gr_jax import cli
from gr_jax.serving.load import load
from gr_jax.serving.model import Answer
from gr_jax.training.console import say, table


def main(argv: list[str]) -> int:
    """Print the best items for a user as a table or as JSON."""
    flags: dict[str, cli.Flag] = {
        "workdir": (Path, cli.REQUIRED, "folder of a trained run"),
        "user": (str, cli.REQUIRED, "raw id of a user of the log"),
        "k": (int, 10, "number of items; -k 10 is the same"),
        "at_time": (
            str,
            "",
            "when they would be taken: unix seconds, ISO text or now; default: at the last event",
        ),
        "task": (
            str,
            "",
            "ranking: the task whose prediction orders the items; default: the first",
        ),
        "data": (
            str,
            "",
            "newer log, for histories as they are now; default: as they were at the training",
        ),
        "seen": (
            ("judged", "true", "false"),
            "judged",
            "true lets items of the history come; judged = as in evaluate.exclude",
        ),
        "json": (bool, False, "print JSON"),
    }
    args = cli.parse(argv, doc=__doc__, flags=flags, config="none")
    model = load(args.workdir, data=args.data)
    history = model.history(args.user)
    exclude_seen = {"judged": None, "true": False, "false": True}[args.seen]
    answer = model.recommend(
        history,
        args.k,
        number_or_text(args.at_time) if args.at_time else None,
        user=args.user,
        task=args.task,
        exclude_seen=exclude_seen,
    )
    if args.json:
        found = {"user": args.user, "events": len(history), **dataclasses.asdict(answer)}
        say(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        skipped = f", {answer.skipped:,} of them of unknown items" if answer.skipped else ""
        say(f"user {args.user}, {len(history):,} events{skipped}\n\n{as_table(answer)}")
    return 0


def number_or_text(text: str) -> float | str:
    """Unix seconds of the flag --at-time, or its text."""
    try:
        return float(text)
    except ValueError:
        return text


def as_table(answer: Answer) -> str:
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
