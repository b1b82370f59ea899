"""Origin of a prepared dataset: settings and raw files, and their fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from gr_jax import folders
from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.dataset_files import VERSION

# Settings of the layout and of sampling: they decide what a batch holds, not what is on disk.
_NOT_ON_DISK = (
    "path",
    "prepared",
    "max_length",
    "row_length",
    "max_series",
    "stochastic_length_alpha",
    "stochastic_length_selection",
)


def made_from(config: DataConfig, files: Sequence[Path]) -> dict:
    """Settings, and name and SHA-256 of the raw files: they decide the content of a dataset.

    A setting without effect is left out, so that a dataset stays the same when a new setting comes
    with a new version. The files are read, at about 1 GB a second and core: a small part of the
    time of parsing them.
    """
    settings = dataclasses.asdict(config)
    for name in _NOT_ON_DISK:
        del settings[name]
    if config.source not in ("csv", "parquet"):
        columns = ("user_column", "item_column", "time_column", "rating_column")
        for name in (*columns, "time_unit", "delimiter"):
            del settings[name]
    if config.source != "synthetic":
        del settings["synthetic"]
    elif not config.synthetic.actions:
        del settings["synthetic"]["actions"]
    if config.filter == "none":
        del settings["min_events"]
    for name, default in (("duplicates", "drop"), ("delimiter", "")):
        if settings.get(name) == default:
            del settings[name]
    for name, file in (("user_features", "user_file"), ("item_features", "item_file")):
        # An item file may be there for its titles alone.
        if not settings[file] or not (settings[name] or file == "item_file"):
            del settings[file]
    for name in ("actions", "user_features", "item_features", "series"):
        settings[name] = list(settings[name])  # as JSON reads it back
        if not settings[name]:
            del settings[name]
    files = list(dict.fromkeys(files))
    sums = zip(files, folders.checksums(files), strict=True)
    return {
        "version": VERSION,
        "settings": settings,
        "files": [[file.name, digest] for file, digest in sums],
    }


def fingerprint(source: dict) -> str:
    """A short name for what `made_from` returned, wherever the files are and however called."""
    content = source | {"files": [digest for _, digest in source["files"]]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def check_same(folder: Path, meta: dict, source: dict) -> None:
    """Raise a ConfigError that names the settings that differ if a dataset has another origin."""
    if meta.get("fingerprint") == fingerprint(source):
        return
    check_settings(folder, meta, source["settings"])
    raise _otherwise(folder, "the raw files changed since")


def check_settings(folder: Path, meta: dict, now: dict) -> None:
    """Raise a ConfigError that names the settings of a dataset that differ from these."""
    before = meta.get("made_from", {}).get("settings", now)
    changed = [
        f"{name}={now.get(name)!r} (was {before.get(name)!r})"
        for name in sorted(now | before)
        if now.get(name) != before.get(name)
    ]
    if changed:
        raise _otherwise(folder, ", ".join(changed))


def _otherwise(folder: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{folder}: prepared otherwise: {what}; delete it or choose another data.prepared"
    )
