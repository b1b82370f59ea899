"""Attributes and slow series as ids 1..V of one vocabulary of (feature, value); 0 = unknown.

The name of the feature is part of a value: "F" of gender and "F" of another feature are two ids,
whereas a user attribute and a series of the same name share theirs. Only values of known users and
items have an id.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from gr_jax.config import ConfigError
from gr_jax.data import ids
from gr_jax.data.log import times
from gr_jax.data.log.attributes import Attributes, Series, Table
from gr_jax.data.log.layout import PER_SECOND


@dataclass(frozen=True)
class Encoded:
    """The columns of features of a dataset, and the vocabulary of their ids."""

    # as in `dataset`: user_features, ...
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    table: pl.DataFrame | None = None  # value_id 1..V, feature, value
    meta: dict = field(default_factory=dict)  # names, number of values, rows left out


def encode(attributes: Attributes, users: pl.Series, items: pl.Series, *, unit: str) -> Encoded:
    """Numbers for the attributes of the users and items of a dataset.

    Args:
      users, items: raw ids of user 0.. and item 1.. in order.
      unit: of the times of the series, s or ms.

    Raises:
      ConfigError: a file in which no user or no item is known.
    """
    skipped, missing = Counter(attributes.skipped), Counter()
    parts: list[
        pl.DataFrame
    ] = []  # code, feature, value: of all users, of all items, of each series
    for kind, table, raw in (("user", attributes.users, users), ("item", attributes.items, items)):
        if table is not None:
            parts.append(_pairs(table.names, _known(table, raw, kind, skipped, missing)))
    for series in attributes.series:
        known = _known(series, users, "user", skipped, missing)
        parts.append(
            known.select("code", "time", times.FRACTION, "value", feature=pl.lit(series.name))
        )
    if not parts:
        return Encoded()
    table = _vocabulary(parts)
    parts = [
        part.join(table, on=("feature", "value"), how="left", maintain_order="left")
        for part in parts
    ]
    columns: dict[str, np.ndarray] = {}
    if attributes.users is not None:
        columns["user_features"] = _user_features(parts.pop(0), attributes.users.names, len(users))
    if attributes.items is not None:
        columns["item_features"] = _item_features(parts.pop(0), len(items))
    if attributes.series:
        columns |= _merged(parts, len(users), unit)
    meta = {
        "num_feature_values": table.height,
        "user_features": list(attributes.users.names) if attributes.users else [],
        "item_features": list(attributes.items.names) if attributes.items else [],
        "series": [series.name for series in attributes.series],
        "series_entries": len(columns.get("series_value", ())),
        "skipped": dict(sorted(skipped.items())),
        "missing": dict(sorted(missing.items())),
    }
    return Encoded(columns, table, meta)


def _known(
    table: Table | Series, raw: pl.Series, kind: str, skipped: Counter, missing: Counter
) -> pl.DataFrame:
    """The rows of known users or items, with their code from 0.

    The others are counted, and so are users or items that have no row.
    """
    rows = table.rows
    codes = pl.DataFrame({"raw": raw, "code": np.arange(len(raw), dtype=np.int32)})
    known = rows.join(codes, on="raw", how="inner", maintain_order="left")
    if not known.height:
        there, log = (", ".join(map(repr, some.head(3))) or "none" for some in (rows["raw"], raw))
        raise ConfigError(
            f"{table.file}: no {kind} of the log in it; it has {there}, ..., the log has {log}, ..."
        )
    found = known["raw"].n_unique()
    if found < len(raw):
        missing[f"{kind}s not in {table.file.name}"] = len(raw) - found
    unknown = rows["raw"].n_unique() - found
    if unknown:
        skipped[f"{kind} without events in {table.file.name}"] += unknown
    return known


def _pairs(names: tuple[str, ...], known: pl.DataFrame) -> pl.DataFrame:
    """(code, feature, value) of all values, by user or item, attribute and place in the cell."""
    columns = []
    for place, name in enumerate(names):
        values = known.select(
            "code", value=pl.col(str(place)), feature=pl.lit(name), place=pl.lit(place)
        )
        if isinstance(values.schema["value"], pl.List):
            values = values.explode("value")
        columns.append(values.filter(pl.col("value").is_not_null()))
    return pl.concat(columns).sort("code", "place", maintain_order=True).drop("place")


def _vocabulary(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """value_id, feature, value: by feature in order of appearance, then by value."""
    pairs = pl.concat(
        [part.select("feature", "value").unique(maintain_order=True) for part in parts]
    )
    tables = []
    for (name,), group in pairs.unique(maintain_order=True).group_by(
        "feature", maintain_order=True
    ):
        tables.append(pl.DataFrame({"feature": name, "value": ids.in_order(group["value"])}))
    empty = pl.DataFrame(schema={"feature": pl.String, "value": pl.String})
    table = pl.concat([empty, *tables])
    return table.select(
        pl.Series("value_id", np.arange(1, table.height + 1, dtype=np.int32)), "feature", "value"
    )


def _user_features(pairs: pl.DataFrame, names: tuple[str, ...], users: int) -> np.ndarray:
    column = pairs["feature"].replace_strict(
        list(names), list(range(len(names))), return_dtype=pl.Int32
    )
    features = np.zeros((users, len(names)), np.int32)
    features[pairs["code"].to_numpy(), column.to_numpy()] = pairs["value_id"].to_numpy()
    return features


def _item_features(pairs: pl.DataFrame, items: int) -> np.ndarray:
    pairs = pairs.unique(("code", "value_id"), keep="first", maintain_order=True)
    code = pairs["code"].to_numpy()
    first = np.searchsorted(code, code)  # of the same item: the pairs are sorted by item
    place = np.arange(len(code)) - first
    features = np.zeros((items + 1, int(place.max(initial=0)) + 1), np.int32)
    features[code + 1, place] = pairs["value_id"].to_numpy()
    return features


def _merged(parts: list[pl.DataFrame], users: int, unit: str) -> dict[str, np.ndarray]:
    """All series as one list of entries per user: by time, order in the config, then the file."""
    series = pl.concat([_compressed(part) for part in parts])
    series = series.sort("code", "time", times.FRACTION, maintain_order=True)
    counts = np.bincount(series["code"].to_numpy(), minlength=users)
    return {
        "series_offsets": np.concatenate([[0], np.cumsum(counts)]),
        "series_value": series["value_id"].to_numpy(),
        "series_time": series["time"].to_numpy() // PER_SECOND[unit],
    }


def _compressed(part: pl.DataFrame) -> pl.DataFrame:
    """The earliest entry of each run of equal values of one series."""
    part = part.sort("code", "time", times.FRACTION, maintain_order=True)
    changed = [pl.col(name) != pl.col(name).shift() for name in ("code", "value_id")]
    return part.filter(pl.any_horizontal(changed).fill_null(True)).select(
        "code", "time", times.FRACTION, "value_id"
    )
