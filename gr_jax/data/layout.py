"""Where the columns of an event are in a raw file, and what a usable value is."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from gr_jax.config import ConfigError

PER_SECOND = {"s": 1, "ms": 1000}
_YEAR_2100 = 4_102_444_800  # unix seconds; a later event is a mistake, most often of the unit


class BadRow(ConfigError):
    """A row of the raw log that cannot be used: file, line, content, what is wrong, remedy."""


@dataclass(frozen=True)
class Layout:
    """Where the columns of an event are in a raw file."""

    user: str  # name of the user column
    item: str  # name of the item column
    time: str  # name of the time column
    rating: str = ""  # name of the rating column; "" = none
    actions: tuple[str, ...] = ()  # names of 0/1 columns
    names: tuple[str, ...] = ()  # of all columns, for a text file without a header line
    separator: str = ","
    unit: str = "s"  # of the time column, s or ms
    integer_ids: bool = False  # the format's ids are integers: parsed faster, anything else is a bad row
    quoted: bool = True  # fields may stand in double quotes

    @property
    def columns(self) -> dict[str, str]:
        """Column of the events -> column of the file."""
        columns = {"user": self.user, "item": self.item, "timestamp": self.time}
        if self.rating:
            columns["rating"] = self.rating
        return columns | {f"action:{name}": name for name in self.actions}

    @property
    def types(self) -> dict:
        """Column of the events -> its type."""
        ids = pl.Int64 if self.integer_ids else pl.String
        types: dict = {"user": ids, "item": ids, "timestamp": pl.Int64}
        if self.rating:
            types["rating"] = pl.Float32
        return types | {f"action:{name}": pl.Int8 for name in self.actions}

    @property
    def last_time(self) -> int:
        """The latest time, in the layout's unit, that is taken for one."""
        return _YEAR_2100 * PER_SECOND[self.unit]
