"""Actions: named conditions on the columns of the log, kept as one bitmask per event.

"watched=1"           always "click=is_click"      where the 0/1 column is 1 "liked=rating>=4"
where the numeric column compares so (>=, >, <=, <, ==); never where it is empty
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from gr_jax.config import ConfigError

MOST = 30  # names of one log: a token holds its action as 1 + 2 * bits in an int32
_COMPARE = {
    ">=": pl.Expr.ge,
    ">": pl.Expr.gt,
    "<=": pl.Expr.le,
    "<": pl.Expr.lt,
    "==": pl.Expr.eq,
}
_FORMS = (
    '"watched=1" (always), "click=is_click" (a 0/1 column) or "liked=rating>=4" (>=, >, <=, <, ==)'
)


@dataclass(frozen=True)
class Action:
    """One condition on the columns of an event."""

    name: str
    column: str = ""  # of the log; "" = it always happens
    compare: str = ""  # >=, >, <=, < or ==; "" = a 0/1 column
    number: float = 0.0  # that the column is compared with

    @property
    def is_flag(self) -> bool:
        """True if the column is one of 0 and 1."""
        return bool(self.column) and not self.compare


def parse(texts: Sequence[str]) -> tuple[Action, ...]:
    """The conditions of `data.actions`.

    Raises:
      ConfigError: a text that is no condition, two of one name, one called rating, or too many.
    """
    actions = tuple(_parse(text) for text in texts)
    names = [action.name for action in actions]
    for name in names:
        if name == "rating":
            raise ConfigError(
                'data.actions: "rating" names the value of the rating as a task; choose another'
                " name"
            )
        if names.count(name) > 1:
            raise ConfigError(
                f"data.actions: {name!r} is there twice; give each action its own name"
            )
    if len(actions) > MOST:
        raise ConfigError(
            f"data.actions: {len(actions)} actions, at most {MOST} fit a token; leave some out"
        )
    return actions


def _parse(text: str) -> Action:
    name, _, condition = (part.strip() for part in text.partition("="))
    wrong = ConfigError(f"data.actions: {text!r} is no action: write {_FORMS}")
    if not re.fullmatch(r"\w[\w-]*", name) or not condition:
        raise wrong
    if condition == "1":
        return Action(name)
    flag = re.fullmatch(r"[^<>=]*[^<>=\d.+-][^<>=]*", condition)  # not a bare number
    if flag:
        return Action(name, condition)
    comparison = re.fullmatch(r"([^<>=]+?)\s*(>=|<=|==|>|<)\s*([^<>=]+)", condition)
    try:
        number = float(comparison[3]) if comparison else math.nan
    except ValueError:
        number = math.nan
    if comparison is None or not math.isfinite(number):
        raise wrong
    return Action(name, comparison[1], comparison[2], number)


def bits(
    events: pl.DataFrame, actions: Sequence[Action], columns: Mapping[Action, str]
) -> pl.DataFrame:
    """`events` with an Int32 column `action`: bit i is set where actions[i] happened.

    Args:
      columns: the column of `events` that each action with a condition looks at.

    Raises:
      ConfigError: an action looks at a column that `events` does not have, or compares one that
        has no numbers.
    """
    terms = [pl.lit(0, pl.Int32)]
    for i, action in enumerate(actions):
        if not action.column:
            happened = pl.lit(True)
        else:
            happened = _condition(events, action, columns[action])
        terms.append(happened.fill_null(False).cast(pl.Int32) * (1 << i))
    return events.with_columns(pl.sum_horizontal(terms).cast(pl.Int32).alias("action"))


def check_filled(
    actions: Sequence[Action], columns: Mapping[Action, str], filled: Collection[str]
) -> None:
    """Raise a ConfigError where an action compares a column that is not `filled` anywhere."""
    for action in actions:
        if action.compare and columns[action] not in filled:
            raise ConfigError(
                f"data.actions: {action.name!r} compares {action.column!r}, which is empty in this"
                " log"
            )


def _condition(events: pl.DataFrame, action: Action, column: str) -> pl.Expr:
    if column not in events.columns:
        near = difflib.get_close_matches(column, events.columns, 1)
        did_you_mean = f"; did you mean {near[0]!r}?" if near else ""
        there = ", ".join(map(repr, events.columns))
        raise ConfigError(
            f"data.actions: {action.name!r} looks at {column!r}, the log has only"
            f" {there}{did_you_mean}"
        )
    values = events[column]
    if not action.compare:
        return pl.col(column) == 1
    if not values.dtype.is_numeric():
        raise ConfigError(
            f"data.actions: {action.name!r} compares {action.column!r}, which is not a column of"
            " numbers"
        )
    number = pl.lit(action.number, values.dtype if values.dtype.is_float() else pl.Float64)
    return _COMPARE[action.compare](pl.col(column), number) & ~pl.col(column).is_null()
