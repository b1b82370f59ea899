"""Prepare a raw log: read, filter, sort and number it, and write the dataset that training maps.

    python -m gr_jax.prepare --config=configs/ml_1m.py --config.data.path=ml-1m
    python -m gr_jax.prepare --source=csv --path=clicks.csv.gz --user-column=visitor --out=clicks
    python -m gr_jax.prepare --source=ml-1m --actions="liked=rating>=4" --user-features=gender,age
    python -m gr_jax.prepare --source=parquet --path=/shared/clicks --out=/shared/prepared \\
        --runner=beam --beam-options="--runner=FlinkRunner --flink_master=host:8081"

A dataset that was prepared from the same files with the same settings is only summarised. Where
the config hashes item ids to rows (`config.vocabulary`), the summary has the measured and expected
collision rates.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from datetime import UTC, datetime

from gr_jax import cli
from gr_jax.config import SOURCES, Config, ConfigError, DataConfig
from gr_jax.config.overrides import comments
from gr_jax.data import hashing
from gr_jax.data.beam import build as beam_prepare
from gr_jax.data.dataset import Dataset
from gr_jax.data.log import duplicates
from gr_jax.data.log.preparation import prepare


def names(text: str) -> tuple[str, ...]:
    """The texts between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


_FIELDS = {  # flag -> type; each sets the field of DataConfig with this name
    "source": SOURCES,
    "path": str,
    "user_column": str,
    "item_column": str,
    "time_column": str,
    "rating_column": str,
    "delimiter": str,
    "time_unit": str,
    "filter": str,
    "min_events": int,
    "on_bad_row": str,
    "duplicates": str,
    "actions": names,
    "user_file": str,
    "user_features": names,
    "item_file": str,
    "item_features": names,
    "series": names,
}


def main(argv: list[str]) -> None:
    """Prepare the log of the command line and print a summary."""
    about = comments(DataConfig())
    flags: dict[str, cli.Flag] = {name: (kind, None, about[name]) for name, kind in _FIELDS.items()}
    flags["out"] = (str, None, about["prepared"])
    flags["runner"] = (
        ("polars", "beam"),
        "polars",
        "polars = in this process | beam = by Apache Beam, on many machines",
    )
    flags["beam_options"] = (
        str,
        "",
        "of Beam, in quotes; without --runner among them it runs in this process",
    )
    args = cli.parse(argv, doc=__doc__, flags=flags, config="optional")
    cli.refuse_overrides(args)
    if args.config is None and args.source is None:
        raise ConfigError("give --config=FILE, or --source=NAME and --path=RAW; --help says more")
    given = {name: getattr(args, name) for name in _FIELDS if getattr(args, name) is not None}
    if args.out is not None:
        given["prepared"] = args.out
    config = dataclasses.replace(args.config.data if args.config else DataConfig(), **given)
    if args.beam_options and args.runner != "beam":
        raise ConfigError("--beam-options is only for --runner=beam")
    build = (
        functools.partial(beam_prepare.build, options=args.beam_options)
        if args.runner == "beam"
        else None
    )
    start = time.perf_counter()
    dataset = prepare(config, progress=True, build=build)
    print(summary(dataset, args.config or Config(), seconds=time.perf_counter() - start))


def summary(dataset: Dataset, config: Config, *, seconds: float) -> str:
    """A table of what the dataset holds, and of how its items fit the vocabulary of `config`."""
    meta = dataset.meta
    days = [
        datetime.fromtimestamp(meta[name], UTC).strftime("%Y-%m-%d")
        for name in ("time_min", "time_max")
    ]
    mean, median = f"{meta['mean_length']:.1f}", f"{meta['median_length']:.0f}"
    length = f"mean {mean}, median {median}, max {meta['max_length']:,}"
    skipped = ", ".join(f"{count:,} ({reason})" for reason, count in meta["skipped"].items())
    twice = duplicates.told(meta)
    missing = ", ".join(f"{count:,} {what}" for what, count in meta["missing"].items())
    rows = {
        "source": meta["source"],
        "users": f"{dataset.num_users:,}",
        "items": f"{dataset.num_items:,}",
        "events": f"{dataset.num_events:,}",
        "events a user": length,
        "time": f"{days[0]} to {days[1]}",
        **_known(dataset),
        **_collisions(dataset, config),
        "bad rows skipped": skipped or "0",
        **({"duplicates": "; ".join(twice)} if twice else {}),
        **({"missing": missing} if missing else {}),
        "seconds": f"{seconds:.1f}",
        "folder": str(dataset.folder),
    }
    return "\n".join(f"{name:<17} {value}" for name, value in rows.items())


def _known(dataset: Dataset) -> dict[str, str]:
    """Summary rows for actions, features and series."""
    known = {}
    if dataset.events.action is not None:
        rates = [
            float(((dataset.events.action >> i) & 1).mean())
            for i in range(len(dataset.catalogue.actions))
        ]
        shown = zip(dataset.catalogue.actions, rates, strict=True)
        known["actions"] = ", ".join(f"{name} {100 * rate:.4g} %" for name, rate in shown)
    values = dict(dataset.catalogue.features.group_by("feature").len().iter_rows())
    for kind in ("user_features", "item_features", "series"):
        if dataset.meta.get(kind):
            counts = {name: values.get(name, 0) for name in dataset.meta[kind]}
            known[kind.replace("_", " ")] = ", ".join(
                f"{name} ({count:,} values)" for name, count in counts.items()
            )
    if dataset.events.series_value is not None:
        known["series"] += f": {len(dataset.events.series_value):,} entries"
    return known


def _collisions(dataset: Dataset, config: Config) -> dict[str, str]:
    """Summary rows for items that share rows with others; none where each has its own."""
    vocabulary = config.vocabulary
    if vocabulary.kind == "catalogue":
        return {}
    row, rows = hashing.rows_of_items(dataset.catalogue.items["raw"], vocabulary, seed=config.seed)
    found = hashing.collisions(row, rows)
    kind = "rows" if vocabulary.kind == "hashed" else "shared rows"
    return {
        "vocabulary": (
            f"{vocabulary.kind}, {vocabulary.hashes} hashes of each item to {rows:,} {kind}"
        ),
        "one row shared": f"by {found.one:.2%} of the items ({found.one_expected:.2%} expected)",
        "all rows shared": f"by {found.all:.2%} of the items ({found.all_expected:.2%} expected)",
    }


if __name__ == "__main__":
    cli.run(main)
