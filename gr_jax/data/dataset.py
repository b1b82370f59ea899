"""The prepared dataset: memory-mapped CSR columns on disk, with raw ids and titles.

A dataset is a folder. The events of user u are `column[offsets[u] : offsets[u + 1]]`, oldest
first, ties in file order:

    offsets.npy    int64 [B + 1]
    item.npy       int32 [E]     ids 1..X; 0 is left for padding
    timestamp.npy  int64 [E]     unix seconds
    rating.npy     float32 [E]   only when the log has ratings; NaN = this event has none
    action.npy     int32 [E]     only when the log has actions; bit i = meta["actions"][i] happened
    items.parquet  item_id, raw, title (null = unknown)
    users.parquet  user, raw
    meta.json      counts, time range, skipped rows, and what the dataset was made from

and, where the config names features, whose values 1..V have one vocabulary (0 = unknown):

    user_features.npy   int32 [B, C]      values of meta["user_features"]
    item_features.npy   int32 [X + 1, F]  values of all meta["item_features"] of item i in entry i,
                                          0-padded on the right
    series_offsets.npy  int64 [B + 1]     the slowly changing values of each user, all of
    series_value.npy    int32 [S]         meta["series"], by time, ties in the order of the names,
    series_time.npy     int64 [S]         unix seconds; only the first of equal values in a row
    features.parquet    value_id, feature, value
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float32, Int, Int32, Int64

from gr_jax.config import ConfigError

VERSION = 1  # of the folder's layout
_REQUIRED = {"offsets": np.int64, "item": np.int32, "timestamp": np.int64}
_OPTIONAL = {
    "rating": np.float32,
    "action": np.int32,
    "user_features": np.int32,
    "item_features": np.int32,
    "series_offsets": np.int64,
    "series_value": np.int32,
    "series_time": np.int64,
}
_TABLES = ("user_features", "item_features")  # of two dimensions; the others have one


@dataclass(frozen=True)
class Events:
    """Events and features of users: columns in CSR form.

    The events of user u are `column[offsets[u] : offsets[u + 1]]`, oldest first.
    """

    offsets: Int64[np.ndarray, " B1"]  # B + 1 entries
    item: Int32[np.ndarray, " E"]  # 1..X
    timestamp: Int64[np.ndarray, " E"]  # unix seconds, ascending within a user
    rating: Float32[np.ndarray, " E"] | None = None  # NaN = this event has none
    action: Int32[np.ndarray, " E"] | None = None  # bits named by `Catalogue.actions`
    user_features: Int32[np.ndarray, "B C"] | None = None  # feature values; 0 = unknown
    series_offsets: Int64[np.ndarray, " B1"] | None = None
    series_value: Int32[np.ndarray, " S"] | None = None
    series_time: Int64[np.ndarray, " S"] | None = None  # unix seconds, ascending within a user

    def __len__(self) -> int:
        """E."""
        return len(self.item)

    @property
    def num_users(self) -> int:
        """B."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " B"]:
        """Events of each user."""
        return np.diff(self.offsets)

    def users_of(self, event: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
        """The user of each flat event index."""
        return np.searchsorted(self.offsets, event, side="right") - 1


@dataclass(frozen=True)
class Catalogue:
    """Items, users and feature values by their raw ids: what the integers of `Events` stand for."""

    folder: Path
    meta: dict  # meta.json
    item_features: Int32[np.ndarray, "X1 F"] | None = None  # feature values; 0-padded on the right

    @property
    def num_items(self) -> int:
        """X: the ids are 1..X."""
        return self.meta["items"]

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the bits of `Events.action`."""
        return tuple(self.meta.get("actions", ()))

    @property
    def num_feature_values(self) -> int:
        """V: the values of all features are 1..V; 0 without features."""
        return self.meta.get("num_feature_values", 0)

    @cached_property
    def items(self) -> pl.DataFrame:
        """Columns item_id (1..X, row i has id i + 1), raw, title."""
        return pl.read_parquet(self.folder / "items.parquet")

    @cached_property
    def users(self) -> pl.DataFrame:
        """Columns user (0..B - 1, in order), raw."""
        return pl.read_parquet(self.folder / "users.parquet")

    @cached_property
    def features(self) -> pl.DataFrame:
        """Columns value_id (1..V, row i has id i + 1), feature, value; empty without features."""
        file = self.folder / "features.parquet"
        schema = {"value_id": pl.Int32, "feature": pl.String, "value": pl.String}
        return pl.read_parquet(file) if file.is_file() else pl.DataFrame(schema=schema)

    @cached_property
    def _item_of_raw(self) -> dict[str, int]:
        return dict(zip(self.items["raw"], self.items["item_id"], strict=True))

    @cached_property
    def _user_of_raw(self) -> dict[str, int]:
        return dict(zip(self.users["raw"], self.users["user"], strict=True))

    def item_ids(self, raw: Sequence[str | int]) -> Int32[np.ndarray, " n"]:
        """Ids of raw item ids; 0 where the catalogue does not have the item."""
        return np.array([self._item_of_raw.get(str(r), 0) for r in raw], np.int32)

    def user_index(self, raw: str | int) -> int:
        """The user with this raw id.

        Raises:
          ConfigError: the log has no such user.
        """
        if str(raw) not in self._user_of_raw:
            some = ", ".join(self.users["raw"].head(3))
            raise ConfigError(f"no user {str(raw)!r} in the log: its users are {some}, ...")
        return self._user_of_raw[str(raw)]

    def user_or(self, raw: str | int, default: int) -> int:
        """The user with this raw id, or `default`."""
        return self._user_of_raw.get(str(raw), default)

    @cached_property
    def _names(self) -> dict[str, np.ndarray]:
        """Raw ids and titles as Python strings: ten times faster to look up than the table."""
        return {name: np.array(self.items[name].to_list(), object) for name in ("raw", "title")}

    def raw_items(self, ids: Int[np.ndarray, " n"]) -> list[str]:
        """Raw ids of item ids 1..X."""
        return self._names["raw"][np.asarray(ids, np.int64) - 1].tolist()

    def titles(self, ids: Int[np.ndarray, " n"]) -> list[str | None]:
        """Titles of item ids 1..X; None where unknown."""
        return self._names["title"][np.asarray(ids, np.int64) - 1].tolist()

    def raw_users(self, users: Int[np.ndarray, " n"]) -> list[str]:
        """Raw ids of users 0..B - 1."""
        return self.users["raw"].gather(np.asarray(users, np.int64)).to_list()


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset whose columns stay on disk. Pickles as its path and reopens there."""

    catalogue: Catalogue
    events: Events

    def __reduce__(self):
        return open_dataset, (self.folder,)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.catalogue.folder

    @property
    def meta(self) -> dict:
        """The contents of meta.json."""
        return self.catalogue.meta

    @property
    def num_users(self) -> int:
        """B."""
        return self.events.num_users

    @property
    def num_items(self) -> int:
        """X: the ids are 1..X."""
        return self.catalogue.num_items

    @property
    def num_events(self) -> int:
        """E."""
        return len(self.events)


def open_dataset(folder: str | Path) -> Dataset:
    """Map the columns of a prepared folder; reads nothing but `meta.json` and the offsets.

    Raises:
      ConfigError: not a dataset, written by another version, or damaged.
    """
    folder = Path(folder).expanduser()
    if not (folder / "meta.json").is_file():
        raise ConfigError(
            f"{folder}: no prepared dataset here (no meta.json); make one with"
            " python -m gr_jax.prepare"
        )
    remedy = "delete the folder and prepare it again"
    try:
        meta = json.loads((folder / "meta.json").read_text())
    except ValueError:
        raise ConfigError(f"{folder}/meta.json: not JSON; {remedy}") from None
    if meta.get("version") != VERSION:
        raise ConfigError(
            f"{folder}: dataset version {meta.get('version')}, this is {VERSION}; {remedy}"
        )
    names = [*_REQUIRED, *(name for name in _OPTIONAL if (folder / f"{name}.npy").exists())]
    columns = {name: _map(folder / f"{name}.npy", remedy) for name in names}
    entries = {"user_features": meta["users"], "item_features": meta["items"] + 1}
    entries |= dict.fromkeys(("offsets", "series_offsets"), meta["users"] + 1)
    entries |= dict.fromkeys(("series_value", "series_time"), meta.get("series_entries", 0))
    for name, column in columns.items():
        expected = entries.get(name, meta["events"])
        if len(column) != expected:
            raise ConfigError(
                f"{folder}/{name}.npy: {len(column)} entries, meta.json says {expected}; {remedy}"
            )
    for name, last, least in (
        ("offsets", meta["events"], 1),
        ("series_offsets", entries["series_value"], 0),
    ):
        offsets = columns.get(name, np.zeros(1))
        if name in columns and (
            offsets[0] != 0 or offsets[-1] != last or (np.diff(offsets) < least).any()
        ):
            raise ConfigError(f"{folder}/{name}.npy: not ascending from 0 to {last}; {remedy}")
    item_features = columns.pop("item_features", None)
    return Dataset(Catalogue(folder, meta, item_features), Events(**columns))


def _map(file: Path, remedy: str) -> np.ndarray:
    try:
        # A plain ndarray view of the map: slicing a np.memmap is several times slower.
        column = np.asarray(np.load(file, mmap_mode="r"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: missing; {remedy}") from None
    except (ValueError, OSError, EOFError):
        raise ConfigError(f"{file}: truncated or damaged; {remedy}") from None
    expected = (_REQUIRED | _OPTIONAL)[file.stem]
    if column.dtype != expected or column.ndim != (2 if file.stem in _TABLES else 1):
        raise ConfigError(
            f"{file}: {column.dtype} of {column.ndim} dimensions, not a column of"
            f" {expected.__name__}"
        )
    return column


def write(
    folder: str | Path,
    *,
    columns: Mapping[str, np.ndarray],
    raw_users: Sequence[str] | pl.Series,
    raw_items: Sequence[str] | pl.Series,
    titles: Sequence[str | None] | pl.Series | None = None,
    feature_table: pl.DataFrame | None = None,
    meta: Mapping | None = None,
) -> Dataset:
    """Write a dataset so that `folder` is either complete or absent.

    Args:
      columns: offsets, item, timestamp and optionally the others of the module docstring.
      raw_users, raw_items: raw ids of user 0.. and item 1.. in order.
      titles: of item 1.. in order.
      feature_table: value_id, feature, value of the columns of features.
      meta: entries to add to the counts.

    Raises:
      ConfigError: `folder` exists already or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists already; choose another folder or delete it")
    columns = {name: np.asarray(columns[name], (_REQUIRED | _OPTIONAL)[name]) for name in columns}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror}); choose data.prepared=FOLDER"
        ) from None
    try:
        building.chmod(0o777 & ~_umask())  # mkdtemp makes it private; a dataset may be shared
        for name, column in columns.items():
            np.save(building / f"{name}.npy", column)
        item_ids = np.arange(1, len(raw_items) + 1, dtype=np.int32)
        names = pl.Series(
            titles if titles is not None else [None] * len(raw_items), dtype=pl.String
        )
        raw = pl.Series(raw_items, dtype=pl.String)
        pl.DataFrame({"item_id": item_ids, "raw": raw, "title": names}).write_parquet(
            building / "items.parquet"
        )
        users = np.arange(len(raw_users), dtype=np.int32)
        raw = pl.Series(raw_users, dtype=pl.String)
        pl.DataFrame({"user": users, "raw": raw}).write_parquet(building / "users.parquet")
        if feature_table is not None:
            feature_table.write_parquet(building / "features.parquet")
        full_meta = _counts(columns, len(raw_items)) | dict(meta or {})
        (building / "meta.json").write_text(json.dumps(full_meta, indent=2) + "\n")
        # Another process may have finished the same dataset first: use that one.
        with contextlib.suppress(OSError):
            os.rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return open_dataset(folder)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _counts(columns: Mapping[str, np.ndarray], items: int) -> dict:
    lengths, timestamp = np.diff(columns["offsets"]), columns["timestamp"]
    return {
        "version": VERSION,
        "source": "",
        "users": len(lengths),
        "items": items,
        "events": len(timestamp),
        "unit": "s",
        "time_min": int(timestamp.min()),
        "time_max": int(timestamp.max()),
        "mean_length": round(float(lengths.mean()), 2),
        "median_length": float(np.median(lengths)),
        "max_length": int(lengths.max()),
        "skipped": {},
        "actions": [],
        "series_entries": len(columns.get("series_value", ())),
    }
