"""Times as people write them -> unix seconds and their fraction, by which events are ordered."""

from __future__ import annotations

import decimal
import math
import re
from datetime import UTC, date, datetime
from typing import NamedTuple

import numpy as np

from gr_jax.data.log.layout import YEAR_2100
from gr_jax.data.log.times import ISO

LAST_TIME = YEAR_2100  # unix seconds
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ISO = re.compile(ISO, re.ASCII)


class Moment(NamedTuple):
    """A time: whole unix seconds, and the fraction of a second that follows them."""

    seconds: int
    fraction: float = 0.0


def moment(value: object) -> Moment:
    """The time that a value stands for; date-times without a zone are in UTC.

    Args:
      value: unix seconds, a datetime or date, a pandas Timestamp, a numpy datetime64, or ISO text.

    Raises:
      ValueError: none of these, or not from 1970 to 2100. It says what would be.
    """
    if isinstance(value, Moment):
        return value
    try:
        found = _moment(value)
    except (ValueError, OverflowError):  # NaN, NaT, the 32nd of a month
        found = None
    if found is None or not 0 <= found.seconds <= LAST_TIME:
        raise ValueError(
            f"expected unix seconds, 0 to {LAST_TIME}, a date-time, or ISO text such as"
            " 2024-05-01T12:30:00Z"
        )
    return found


def _moment(value: object) -> Moment | None:
    if isinstance(value, bool | np.timedelta64):  # which is an integer to numpy
        return None
    if isinstance(value, int | np.integer):
        return Moment(int(value))
    if isinstance(value, float | decimal.Decimal):  # not float32, which has steps of 128 s
        whole = math.floor(value)
        return Moment(whole, float(value - whole))
    if isinstance(value, datetime):
        # A Timestamp of pandas is a datetime that has nanoseconds besides.
        since = datetime.combine(value.date(), value.time(), value.tzinfo or UTC) - _EPOCH
        nanoseconds = since.microseconds * 1000 + getattr(value, "nanosecond", 0)
        return Moment(since.days * 86_400 + since.seconds, nanoseconds / 10**9)
    if isinstance(value, date):
        return Moment((value - _EPOCH.date()).days * 86_400)
    if isinstance(value, np.datetime64) and not np.isnat(value):
        whole = value.astype("datetime64[s]")
        rest = (value - whole) / np.timedelta64(1, "s")
        return Moment(int(whole.astype(np.int64)), float(rest))
    return _of_iso(value) if isinstance(value, str) else None


def _of_iso(text: str) -> Moment | None:
    parts = _ISO.fullmatch(text.strip())
    if parts is None:
        return None
    day, clock, seconds, digits, zone = parts.groups()
    zone = (zone or "Z").upper().replace("UTC", "Z")
    whole = _moment(datetime.fromisoformat(f"{day}T{clock or '00:00'}{seconds or ''}{zone}"))
    assert whole is not None
    return whole._replace(fraction=int(digits) / 10 ** len(digits) if digits else 0.0)
