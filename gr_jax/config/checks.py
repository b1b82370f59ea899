"""Rules of config fields, and the error that names the field, its value and the rule."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from typing import Any


class ConfigError(ValueError):
    """A mistake in a config or on the command line, told in one line."""


def check(ok: bool, name: str, value: Any, rule: str) -> None:
    """Raises a ConfigError "config.NAME=VALUE: must be RULE" unless `ok`."""
    if not ok:
        raise ConfigError(f"config.{name}={value!r}: must be {rule}")


def check_types(config: Any, group: str = "") -> None:
    """Raises a ConfigError unless every field has the type of its default; an int will do for a float.

    The dataclasses of `config` carry `no_type_check`, so that in the tests too a wrong type is told here.
    """
    for f in dataclasses.fields(config):
        value, kind = getattr(config, f.name), field_type(f)
        name = f"config.{group}{f.name}"
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ConfigError(f"{name}: expected {kind.__name__}, got {value!r}")
        if kind is float and not math.isfinite(value):
            raise ConfigError(f"{name}: expected a finite number, got {value!r}")


def field_type(f: dataclasses.Field) -> type:
    """The type of a field: that of its default, or the group of fields that it is."""
    return f.default_factory if f.default is dataclasses.MISSING else type(f.default)  # type: ignore


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ConfigError, with the nearest choice, unless the value is one of them."""
    hint = difflib.get_close_matches(value, choices, 1)
    did_you_mean = f"; did you mean {hint[0]!r}?" if hint else ""
    check(value in choices, name, value, f"one of {', '.join(choices)}{did_you_mean}")
