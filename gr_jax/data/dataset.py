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
    meta.json      counts, time range, rows that were skipped, repeated or missing, what the
                   dataset was made from, `hash` of its contents, `files` with size and SHA-256, and
                   `checksum` of meta.json itself

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float32, Int, Int32, Int64

from gr_jax import folders
from gr_jax.config import ConfigError
from gr_jax.data import dataset_files as files


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
    """A prepared dataset whose columns stay on disk.

    It pickles as its path, and a worker that reopens it there does not check it again.
    """

    catalogue: Catalogue
    events: Events

    def __reduce__(self):
        return _reopen, (self.folder,)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.catalogue.folder

    @property
    def meta(self) -> dict:
        """The contents of meta.json."""
        return self.catalogue.meta

    @property
    def hash(self) -> str:
        """SHA-256 of events, ids and features, wherever the dataset lies and whoever made it."""
        return self.meta["hash"]

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
    """Map the columns of a prepared folder, after a check of all that is in it (`files.check`).

    Raises:
      ConfigError: not a dataset, written by another version, or damaged; names the file.
    """
    return _open(Path(folder).expanduser(), check=True)


def _reopen(folder: Path) -> Dataset:
    """The dataset that another process, or this one, has opened and checked before."""
    return _open(folder, check=False)


def _open(folder: Path, *, check: bool) -> Dataset:
    meta = files.read_meta(folder)
    if check:
        files.check(folder, meta)
    columns = files.map_columns(folder, meta)
    if check:
        files.check_ranges(folder, meta, columns)
    item_features = columns.pop("item_features", None)
    return Dataset(Catalogue(folder, meta, item_features), Events(**columns))


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
      ConfigError: `folder` exists already, with something else in it, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _exists(folder)
    columns = {name: np.asarray(columns[name], files.COLUMNS[name]) for name in columns}
    users, items = pl.Series(raw_users, dtype=pl.String), pl.Series(raw_items, dtype=pl.String)
    names = pl.Series(titles if titles is not None else [None] * len(items), dtype=pl.String)
    full = _counts(columns, len(items)) | dict(meta or {})
    told = {n: full.get(n, ()) for n in ("actions", "user_features", "item_features", "series")}

    with _placed(folder, full) as building:
        for name, column in columns.items():
            np.save(building / f"{name}.npy", column)
        item_id = np.arange(1, len(items) + 1, dtype=np.int32)
        table = pl.DataFrame({"item_id": item_id, "raw": items, "title": names})
        table.write_parquet(building / "items.parquet")
        user = np.arange(len(users), dtype=np.int32)
        pl.DataFrame({"user": user, "raw": users}).write_parquet(building / "users.parquet")
        if feature_table is not None:
            feature_table.write_parquet(building / "features.parquet")
        files.check_ranges(building, full, columns)
        full["files"] = folders.manifest(building)
        full |= files.content_hashes(full["files"], users, items, feature_table, told)
        text = json.dumps(files.sealed(full), indent=2)
        (building / files.META).write_text(text + "\n")
    return _reopen(folder)


def copy_to(dataset: Dataset, folder: str | Path) -> Dataset:
    """The same dataset in another folder, which is either complete or absent; checked.

    Files are hard links where the file system allows, so that the copy takes no space and outlives
    the original. What the folder has of the same contents stays as it is. Several processes may
    do this at once.

    Raises:
      ConfigError: the folder holds something else, or cannot be written.
    """
    folder = Path(folder).expanduser()
    with folders.only_maker(folder):
        if not (folder / files.META).is_file():
            with _placed(folder, dataset.meta) as building:
                for name in (*dataset.meta["files"], files.META):
                    _link_or_copy(dataset.folder / name, building / name)
    copy = open_dataset(folder)
    if copy.hash != dataset.hash:
        raise ConfigError(f"{folder}: holds another dataset than {dataset.folder}; delete it")
    return copy


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


@contextlib.contextmanager
def _placed(folder: Path, meta: Mapping) -> Iterator[Path]:
    """A new folder that becomes `folder`, unless another process made the same contents first.

    Args:
      meta: of the dataset; in the end it has its `hash`.
    """
    try:
        with folders.whole_folder(folder) as building:
            yield building
    except (OSError, pl.exceptions.PolarsError) as error:
        if not (folder / files.META).is_file():
            raise folders.unwritable(folder, error) from None
        if files.read_meta(folder)["hash"] != meta.get("hash"):
            raise _exists(folder) from None


def _exists(folder: Path) -> ConfigError:
    return ConfigError(f"{folder}: exists already; choose another folder or delete it")


def _counts(columns: Mapping[str, np.ndarray], items: int) -> dict:
    lengths, timestamp = np.diff(columns["offsets"]), columns["timestamp"]
    return {
        "version": files.VERSION,
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
        "duplicates": {},
        "missing": {},
        "actions": [],
        "series_entries": len(columns.get("series_value", ())),
    }
