"""From a raw log to a prepared dataset: read, filter, sort, number users and items, write."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from gr_jax import folders
from gr_jax.config import ConfigError, DataConfig
from gr_jax.data import ids
from gr_jax.data.dataset import Dataset, open_dataset, write
from gr_jax.data.log import (
    actions,
    duplicates,
    features,
    filters,
    formats,
    provenance,
    raw_log,
    times,
)
from gr_jax.data.log.layout import PER_SECOND

# (config, raw files, folder, entries of meta.json) -> the dataset written into the folder
Build = Callable[[DataConfig, formats.RawFiles | None, Path, dict], Dataset]

_ROOT = 0  # the user whom no check of ours would stop


def prepare(config: DataConfig, *, progress: bool = False, build: Build | None = None) -> Dataset:
    """The prepared dataset of `config`: opened when it is there, else made from the raw log.

    A second process that prepares the same folder waits, and opens the dataset of the first.

    Args:
      progress: show a bar while downloading, on a terminal.
      build: makes the dataset; None = in the memory of this process, `beam.build.build` = by
        Apache Beam, to the same dataset.

    Raises:
      ConfigError: no raw log, a bad row, nothing left by the filter, or `data.prepared` was made
        from other files or settings.
    """
    folder = Path(config.prepared).expanduser() if config.prepared else None
    raw = formats.find(config)
    if raw is not None and not raw.files:
        if folder is not None and (folder / "meta.json").is_file():
            # The raw log may have stayed on another machine.
            dataset = open_dataset(folder)
            settings = provenance.made_from(config, [])["settings"]
            provenance.check_settings(folder, dataset.meta, settings)
            return dataset
        raw = formats.fetch(config, progress=progress)

    files = raw.files if raw else ()
    states = [_state(file) for file in files]
    made_from = provenance.made_from(config, files)
    fingerprint = provenance.fingerprint(made_from)
    folder = folder or Path("data/prepared") / f"{config.source}-{fingerprint}"
    if not (folder / "meta.json").is_file():
        meta = {"source": config.source, "fingerprint": fingerprint, "made_from": made_from}
        with folders.only_maker(folder):
            if not (folder / "meta.json").is_file():  # no other process made it meanwhile
                dataset = (build or _build)(config, raw, folder, meta)
                for file, state in zip(files, states, strict=True):
                    if _state(file) != state:
                        shutil.rmtree(folder)
                        raise ConfigError(
                            f"{file}: changed while it was read; copy it, or wait until nothing"
                            " writes to it"
                        )
                return dataset
    if not config.prepared:
        _check_owner(folder)
    dataset = open_dataset(folder)
    provenance.check_same(folder, dataset.meta, made_from)
    return dataset


def _state(file: Path) -> tuple[int, int, int]:
    """What changes when something writes to a file."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _check_owner(folder: Path) -> None:
    """Raise a ConfigError if a folder that was found, not named, was made by another user."""
    if hasattr(os, "getuid") and folder.lstat().st_uid not in (os.getuid(), _ROOT):
        raise ConfigError(
            f"{folder}: another user made it; data.prepared={folder} takes it at your word"
        )


def _generate(config: DataConfig) -> raw_log.Log:
    from gr_jax.data.log import synthetic, synthetic_actions

    generate = (synthetic_actions if config.synthetic.actions else synthetic).generate
    return raw_log.with_actions(generate(config.synthetic), actions.parse(config.actions))


def _build(config: DataConfig, raw: formats.RawFiles | None, folder: Path, meta: dict) -> Dataset:
    """Read, filter and sort the log, number its users and items, and write it."""
    with folders.scratch_folder(folder) as scratch:
        log = _generate(config) if raw is None else raw_log.read(config, raw, scratch)
    events, log = log.events, dataclasses.replace(log, events=log.events.clear())
    user, raw_users = ids.encode(events["user"])
    item, raw_items = ids.encode(events["item"])
    names = ("timestamp", "rating", "action", times.FRACTION)
    columns = {name: events[name].to_numpy() for name in names if name in events.columns}
    del events
    if not len(user):
        raise no_events(config, log)

    # Order and repeats, by full times.
    order = stable_order(user, columns["timestamp"], columns.get(times.FRACTION))
    user, item = user[order], item[order]
    columns = {name: column[order] for name, column in columns.items()}
    repeats = duplicates.find(user, item, columns)
    duplicates.check(config.duplicates, repeats.counts)
    if config.duplicates == "drop":
        columns = duplicates.without(repeats, columns | {"user": user, "item": item})
        user, item = columns.pop("user"), columns.pop("item")

    # Users and items that stay.
    if config.filter != "none":
        keep = getattr(filters, config.filter)(user, item, k=config.min_events)
        user, item = user[keep], item[keep]
        columns = {name: column[keep] for name, column in columns.items()}
    if not len(user):
        raise no_events(config, log)
    user, kept_users = ids.compact(user, len(raw_users))
    item, kept_items = ids.compact(item, len(raw_items))

    columns.pop(times.FRACTION, None)
    if log.unit != "s":  # only now: milliseconds order events that share a second
        columns["timestamp"] = columns["timestamp"] // PER_SECOND[log.unit]
    columns["item"] = item + 1
    columns["offsets"] = np.concatenate([[0], np.cumsum(np.bincount(user))])
    users, items = raw_users.gather(kept_users), raw_items.gather(kept_items)
    return write_log(folder, log, columns, users, items, repeats.counts, meta)


def no_events(config: DataConfig, log: raw_log.Log) -> ConfigError:
    """The error for a log with no events left after filtering."""
    filtered = f" after data.filter={config.filter} with data.min_events={config.min_events}"
    skipped = "".join(
        f"; {count:,} rows skipped: {reason}" for reason, count in log.skipped.items()
    )
    return ConfigError(
        f"data.source={config.source}: no events{filtered * (config.filter != 'none')}{skipped}"
    )


def write_log(
    folder: Path,
    log: raw_log.Log,
    columns: Mapping[str, np.ndarray],
    raw_users: pl.Series,
    raw_items: pl.Series,
    repeats: Mapping[str, int],
    meta: Mapping,
) -> Dataset:
    """Write `columns` with the titles and features of `log`, whose events are not read.

    Args:
      repeats: the counts of `duplicates.find`.
      meta: entries of meta.json.
    """
    titles, missing = None, {}
    if log.titles is not None:
        first = log.titles.unique("item", keep="first")
        titles = raw_items.to_frame("item").join(
            first, on="item", how="left", maintain_order="left"
        )["title"]
        missing = {"items without a title": titles.null_count()} if titles.null_count() else {}
    encoded = features.encode(log.attributes, raw_users, raw_items, unit=log.unit)
    copied = duplicates.copied_users(columns["offsets"], columns["item"], columns["timestamp"])
    meta = {**meta, "actions": list(log.actions), **encoded.meta}
    meta |= {
        "skipped": log.skipped | encoded.meta.get("skipped", {}),
        "missing": missing | encoded.meta.get("missing", {}),
        "duplicates": {**repeats, "copied_users": copied},
    }
    return write(
        folder,
        columns={**columns, **encoded.columns},
        raw_users=raw_users,
        raw_items=raw_items,
        titles=titles,
        feature_table=encoded.table,
        meta=meta,
    )


def told(meta: Mapping) -> list[str]:
    """What meta.json says of rows that were left out, are there twice or are missing, in words."""
    skipped = [f"{count:,} bad rows skipped: {why}" for why, count in meta["skipped"].items()]
    missing = [f"{count:,} {what}" for what, count in meta["missing"].items()]
    return [*skipped, *duplicates.told(meta), *missing]


def stable_order(
    user: np.ndarray, timestamp: np.ndarray, fraction: np.ndarray | None = None
) -> np.ndarray:
    """The stable order by (user, timestamp, fraction): ties keep the order of the file."""
    if fraction is not None:
        return np.lexsort((fraction, timestamp, user))
    first, span = int(timestamp.min()), int(timestamp.max()) - int(timestamp.min()) + 1
    if (int(user.max()) + 1) * span >= 2**63:
        return np.lexsort((timestamp, user))
    # One key is 2 to 5 times faster than lexsort, most where the file is grouped by user already.
    return np.argsort(user.astype(np.int64) * span + (timestamp - first), kind="stable")
