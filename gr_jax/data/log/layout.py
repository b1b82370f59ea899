"""Columns of an event in a raw file, and the values that they may have."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from gr_jax.config import ConfigError
from gr_jax.data.log.actions import Action

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
YEAR_2100 = 4_102_444_800  # unix seconds; a later event is a mistake, most often of the unit


class BadRow(ConfigError):
    """A row of the raw log that cannot be used: file, line, content, what is wrong, remedy."""


@dataclass(frozen=True)
class Layout:
    """Where the columns of an event are in a raw file."""

    user: str  # name of the user column
    item: str  # name of the item column
    time: str  # name of the time column
    rating: str = ""  # name of the rating column; "" = none
    actions: tuple[Action, ...] = ()  # what can happen at an event, by columns of the file
    names: tuple[str, ...] = ()  # of all columns, for a text file without a header line
    separator: str = ","
    unit: str = "s"  # of the time column: s, ms, us or ns
    # the format's ids are integers: parsed faster, anything else is a bad row
    integer_ids: bool = False
    quoted: bool = True  # fields may stand in double quotes

    @property
    def flags(self) -> tuple[str, ...]:
        """Columns of 0 and 1 that an action looks at."""
        return tuple(dict.fromkeys(a.column for a in self.actions if a.is_flag))

    @property
    def numbers(self) -> tuple[str, ...]:
        """Columns of numbers that an action compares, besides the rating; a value may be absent."""
        return tuple(
            dict.fromkeys(a.column for a in self.actions if a.compare and a.column != self.rating)
        )

    @property
    def action_columns(self) -> dict[Action, str]:
        """Action with a condition -> column of the events that it looks at."""
        roles = {
            a: f"action:{a.column}" if a.is_flag else f"number:{a.column}"
            for a in self.actions
            if a.column
        }
        return roles | {a: "rating" for a in self.actions if a.compare and a.column == self.rating}

    @property
    def columns(self) -> dict[str, str]:
        """Column of the events -> column of the file."""
        columns = {"user": self.user, "item": self.item, "timestamp": self.time}
        if self.rating:
            columns["rating"] = self.rating
        columns |= {f"action:{name}": name for name in self.flags}
        return columns | {f"number:{name}": name for name in self.numbers}

    @property
    def types(self) -> dict:
        """Column of the events -> its type."""
        ids = pl.Int64 if self.integer_ids else pl.String
        types: dict = {"user": ids, "item": ids, "timestamp": pl.Int64}
        if self.rating:
            types["rating"] = pl.Float32
        types |= {f"action:{name}": pl.Int8 for name in self.flags}
        return types | {f"number:{name}": pl.Float64 for name in self.numbers}

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns of the events that may be empty: numbers without which an event is still one."""
        return ("rating",) * bool(self.rating) + tuple(f"number:{name}" for name in self.numbers)

    @property
    def last_time(self) -> int:
        """The latest time, in the layout's unit, that is taken for one."""
        return YEAR_2100 * PER_SECOND[self.unit]
