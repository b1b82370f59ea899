"""Times of raw files as integers of the log's unit, and their fractions, which order events.

Events and entries of series have the column `fraction`, Float64 in [0, 1) of the unit, where a
time is no integer: 1700000000.9 comes after 1700000000.1 wherever they stand in the file, and both
become 1700000000 in the dataset.

A time is a number of the log's unit, a date-time or a date, or either of them as text; without a
zone it is in UTC. The text of date-times is ISO 8601, with the variations that people's tools
write: `2024-05-01T12:30:00.25Z`, `2024-05-01 12:30:00+02:00`, `2024-05-01`.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from gr_jax.config import ConfigError
from gr_jax.data.log.layout import PER_SECOND

FRACTION = "fraction"
# day, clock, seconds, digits of the fraction, zone; for `re` and for polars
ISO = (
    r"(?i)^(\d{4}-\d\d-\d\d)"
    r"(?:[T ](\d\d:\d\d)(:\d\d)?(?:[.,](\d{1,12}))?)? ?(Z|UTC|[+-]\d\d(?::?\d\d)?)?$"
)
FORMS = "unix times (data.time_unit is their unit) or date-times such as 2024-05-01T12:30:00Z"
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_PICO = 10**12  # 12 digits of a fraction
_FLOAT32_EXACT = 2**24  # above it float32 cannot tell a time from the next second
_YEARS = (600_000_000, 4_102_444_800)  # 1989 to 2100: a time in seconds that tells its unit


def split(time: pl.Series, unit: str, *, where: str) -> list[pl.Series]:
    """Integer times in a unit, null where there is none, under the same name; and their fractions.

    Args:
      time: numbers of the unit, date-times, dates, or text of them.
      unit: s, ms, us or ns.
      where: the file and column to name in errors.

    Raises:
      ConfigError: a column of a type that is no time.
    """
    kind, per_second = time.dtype, PER_SECOND[unit]
    if kind == pl.Null:
        return [time.cast(pl.Int64)]
    if isinstance(kind, (pl.Categorical, pl.Enum)):
        time, kind = time.cast(pl.String), pl.String()
    if isinstance(kind, pl.Date):
        time, kind = time.cast(pl.Datetime("ms")), pl.Datetime("ms")
    if kind == pl.String:
        whole, rest = _of_text(time, per_second)
    elif isinstance(kind, pl.Datetime):
        whole, rest = _of_ticks(time.to_physical(), 10 ** _DIGITS[kind.time_unit], per_second)
    elif kind.is_integer():
        return [time.cast(pl.Int64, strict=False)]
    elif kind.is_float() or kind.is_decimal():
        if kind != pl.Float64 and kind.is_float() and _exceeds(time):
            raise ConfigError(
                f"{where} is {kind}, in which times of today are 128 s apart; write it as"
                " integers or float64"
            )
        number = time if kind.is_decimal() else time.cast(pl.Float64)
        whole = number.floor().cast(pl.Int64, strict=False)
        rest = (number - number.floor()).cast(pl.Float64)
    else:
        raise ConfigError(f"{where} is {kind}, which is no time; expected {FORMS}")
    whole, rest = whole.alias(time.name), rest.fill_nan(None).fill_null(0.0).alias(FRACTION)
    return [whole, rest] if (rest != 0).any() else [whole]


_DIGITS = {"ms": 3, "us": 6, "ns": 9}  # of a date-time's ticks


def _exceeds(time: pl.Series) -> bool:
    number = time.cast(pl.Float64)
    return bool((number.is_finite() & (number.abs() >= _FLOAT32_EXACT)).any())


def _of_ticks(ticks: pl.Series, ticks_per_second: int, per_second: int):
    if ticks_per_second < per_second:
        return ticks * (per_second // ticks_per_second), pl.zeros(len(ticks), eager=True)
    size = ticks_per_second // per_second
    return ticks // size, (ticks % size) / size


def _of_text(time: pl.Series, per_second: int) -> tuple[pl.Series, pl.Series]:
    text = time.str.strip_chars()
    whole, rest = _of_number_text(text)
    if whole.null_count() > text.null_count():
        dated = whole.is_null()
        seconds, pico = _of_iso(text.filter(dated))
        size = _PICO // per_second
        ticks = seconds * per_second + pico // size
        whole, rest = (
            whole.scatter(dated.arg_true(), ticks),
            rest.scatter(dated.arg_true(), (pico % size) / size),
        )
    return whole, rest


def _of_number_text(text: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Of "17", "17.25" and "1.7e1"; digits after a point are read as they are, not as a double."""
    whole = text.cast(pl.Int64, strict=False)
    rest = pl.zeros(len(text), pl.Float64, eager=True)
    if whole.null_count() > text.null_count():
        open_ = whole.is_null()
        part = text.filter(open_).to_frame("text")
        number = pl.col("text").cast(pl.Float64, strict=False)
        point = pl.col("text").str.extract_groups(r"^(\d+)\.(\d+)$")
        digits = pl.concat_str(pl.lit("0."), point.struct.field("2")).cast(pl.Float64)
        found = part.select(
            whole=pl.coalesce(
                point.struct.field("1").cast(pl.Int64, strict=False),
                number.floor().cast(pl.Int64, strict=False),
            ),
            rest=pl.coalesce(digits, number - number.floor()).fill_nan(None).fill_null(0.0),
        )
        whole, rest = (
            whole.scatter(open_.arg_true(), found["whole"]),
            rest.scatter(open_.arg_true(), found["rest"]),
        )
    return whole, rest


def _of_iso(text: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Unix seconds, null where the text is no date-time, and the picoseconds that follow them."""
    names = ("day", "clock", "seconds", "digits", "zone")
    parts = text.to_frame("text").select(
        pl.col("text").str.extract_groups(ISO).struct.rename_fields(names).struct.unnest()
    )
    clock = pl.col("clock").fill_null("00:00") + pl.col("seconds").fill_null(":00")
    stamp = (pl.col("day") + "T" + clock).str.to_datetime(
        "%Y-%m-%dT%H:%M:%S", time_unit="ms", strict=False
    )
    offset = pl.col("zone").str.replace(":", "").str.extract_groups(r"^([+-])(\d\d)(\d\d)?$")
    minutes = offset.struct.field("2").cast(pl.Int64) * 60
    minutes += offset.struct.field("3").cast(pl.Int64).fill_null(0)
    sign = pl.when(offset.struct.field("1") == "-").then(-1).otherwise(1)
    found = parts.select(
        seconds=stamp.dt.epoch("s") - (sign * minutes * 60).fill_null(0),
        pico=pl.col("digits").str.pad_end(12, "0").cast(pl.Int64).fill_null(0),
    )
    return found["seconds"], found["pico"]


def looks_like(time: int) -> str | None:
    """The unit that makes a number a time between 1989 and 2100, if one does."""
    fits = [u for u, size in PER_SECOND.items() if _YEARS[0] <= time // size <= _YEARS[1]]
    return fits[0] if fits else None


def unit_mistake(first: int, last: int, unit: str) -> str:
    """What is wrong with the unit of times from `first` to `last`, and the remedy; "" if nothing.

    A mistake is one that makes all times too early. Times that are too late are bad rows.
    """
    # Every time of a log of today, read as milliseconds when it is seconds, falls in the first
    # weeks of 1970.
    found = looks_like(last)
    if unit != "s" and 0 < last < 5_000_000 * PER_SECOND[unit] and found not in (None, unit):
        shown = f"as {_NAMES[unit]} its last time, {last}, is in 1970"
        return f"{shown}: it looks like {_NAMES[found]}; {unit_remedy(found)}"
    if unit == "s" and all(_is_day(time) for time in (first, last)):
        return (
            f"as seconds its last time, {last}, is in 1970: it looks like the day"
            f" {_day(last)}; expected {FORMS}"
        )
    return ""


def unit_remedy(unit: str) -> str:
    """The setting by which times of a unit are read."""
    return f"data.source=csv or parquet reads those with data.time_unit={unit}"


def late_hint(raw: object, unit: str) -> str:
    """What a time after the year 2100 looks like, and the remedy; "" if nothing known."""
    try:
        time = int(float(str(raw)))
    except (ValueError, OverflowError):  # a date-time
        return ""
    found = looks_like(time)
    if found not in (None, unit):
        return f"it looks like {_NAMES[found]}: {unit_remedy(found)}"
    if len(str(time)) == 14 and _is_day(time // 10**6):
        return f"it looks like {_day(time // 10**6)} and a clock: expected {FORMS}"
    return ""


def _day(time: int) -> str:
    return f"{time // 10_000:04}-{time // 100 % 100:02}-{time % 100:02}"


def _is_day(time: int) -> bool:
    """True if an integer reads as YYYYMMDD."""
    return 1970 <= time // 10_000 <= 2100 and 1 <= time // 100 % 100 <= 12 and 1 <= time % 100 <= 31


def without_zeros(events: pl.DataFrame) -> pl.DataFrame:
    """The events without fractions if all are 0."""
    return (
        events
        if FRACTION not in events.columns or (events[FRACTION] != 0).any()
        else events.drop(FRACTION)
    )


def concat(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Frames of events one after the other; fractions are 0 where only other frames have them."""
    if any(FRACTION in frame.columns for frame in frames):
        zero = pl.lit(0.0).alias(FRACTION)
        frames = [
            frame if FRACTION in frame.columns else frame.with_columns(zero) for frame in frames
        ]
    return pl.concat(frames)
