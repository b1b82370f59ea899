"""Rules of config fields, and the error that names the field, its value and the rule."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from gr_jax.errors import shown


class ConfigError(ValueError):
    """A mistake in a config or on the command line, described in one line."""


def check(ok: bool, name: str, value: object, rule: str) -> None:
    """Raise a ConfigError "config.NAME=VALUE: must be RULE" unless `ok`."""
    if not ok:
        raise ConfigError(f"config.{name}={shown(value)}: must be {rule}")


def check_at_least(low: int, config: Any, group: str, *names: str) -> None:
    """Raise a ConfigError unless these fields of a group, such as "model.", are `low` or more."""
    for name in names:
        value = getattr(config, name)
        check(value >= low, f"{group}{name}", value, f"at least {low}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ConfigError, with the nearest choice, unless the value is one of them."""
    check(
        value in choices, name, value, f"one of {', '.join(choices)}{did_you_mean(value, choices)}"
    )


def unix_seconds(text: str) -> int | None:
    """The time of an ISO 8601 text, in UTC where it has no zone; None if it is none.

    >>> unix_seconds("2001-09-09T01:46:40"), unix_seconds("May")
    (1000000000, None)
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def did_you_mean(value: str, choices: Sequence[str]) -> str:
    """The suggestion "; did you mean 'CHOICE'?", or "" if nothing is near."""
    hint = difflib.get_close_matches(value, choices, 1)
    return f"; did you mean {hint[0]!r}?" if hint else ""


def check_types(config: Any, group: str = "") -> None:
    """Raise a ConfigError unless every field has its default's type; an int passes for a float.

    The dataclasses of `config` carry `no_type_check`: in the tests, where signatures are checked at
    run time, a wrong type is still reported here.
    """
    for f in dataclasses.fields(config):
        value, kind = getattr(config, f.name), field_type(f)
        name = f"config.{group}{f.name}"
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ConfigError(f"{name}: expected {kind.__name__}, got {shown(value)}")
        if kind is int and value.bit_length() > 63:
            raise ConfigError(f"{name}={shown(value)}: must fit in 64 bits")
        if kind is float and not _is_finite(value):
            raise ConfigError(f"{name}: expected a finite number, got {shown(value)}")


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def field_type(f: dataclasses.Field) -> type:
    """The type of a field: that of its default, or the dataclass of a group of fields."""
    return f.default_factory if f.default is dataclasses.MISSING else type(f.default)  # type: ignore
