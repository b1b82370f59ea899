"""What a sweep searches: fields of a config with their choices or ranges, as text of the command.

model.width=32,64,128                     one of these
optimizer.learning_rate=1e-4:1e-2:log     between these, evenly in the logarithm
model.num_blocks=1:4                      whole numbers for a field that holds one
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from gr_jax.config import Config, ConfigError
from gr_jax.config.overrides import leaves, nearest, parse_as
from gr_jax.errors import shown

if TYPE_CHECKING:
    from optuna.trial import BaseTrial


class Choices(NamedTuple):
    """A field that has one of these values, as text."""

    field: str
    texts: tuple[str, ...]


class Range(NamedTuple):
    """A field that has a number from `low` to `high`, both included."""

    field: str
    low: float
    high: float
    is_log: bool
    is_whole: bool


Dimension = Choices | Range


def parse(texts: Sequence[str], config: Config) -> list[Dimension]:
    """The dimensions of `FIELD=VALUES` texts, for fields of `config`.

    Raises:
      ConfigError: no such field, a value of another type, or a range that is none.
    """
    found = [_dimension(text, config) for text in texts]
    for dimension in found:
        if sum(other.field == dimension.field for other in found) > 1:
            raise ConfigError(f"--search: {dimension.field} is given twice: give it once")
    return found


def _dimension(text: str, config: Config) -> Dimension:
    name, equals, values = text.partition("=")
    field = name.strip().removeprefix("config.")
    if not equals or not values:
        raise ConfigError(f"--search={shown(text)}: expected FIELD=A,B,C or FIELD=LOW:HIGH[:log]")
    known = leaves(config)
    if field not in known:
        raise ConfigError(f"--search: config has no field {shown(field)}{nearest(field)}")
    kind = type(known[field])
    if kind in (int, float) and ":" in values:
        return _range(field, kind, values)
    texts = tuple(value.strip() for value in values.split(","))
    for value in texts:
        parse_as(value, kind, f"--search: config.{field}")
    return Choices(field, tuple(dict.fromkeys(texts)))


def _range(field: str, kind: type, text: str) -> Range:
    low, high, *rest = text.split(":")
    least, most = (float(parse_as(end, kind, f"--search: config.{field}")) for end in (low, high))
    if rest not in ([], ["log"]):
        hint = difflib.get_close_matches(":".join(rest), ["log"], 1)
        told = "; did you mean log?" if hint else "; only log may follow"
        raise ConfigError(f"--search: {field}={text}: LOW:HIGH or LOW:HIGH:log{told}")
    if not least < most:
        raise ConfigError(f"--search: {field}={text}: the first has to be the smaller number")
    if rest and least <= 0:
        raise ConfigError(f"--search: {field}={text}: a logarithm needs numbers above 0")
    return Range(field, least, most, bool(rest), kind is int)


def combinations(dimensions: Sequence[Dimension]) -> list[dict[str, str]] | None:
    """All settings that there are, field by field; None if a range makes them too many to list."""
    choices = [dimension for dimension in dimensions if isinstance(dimension, Choices)]
    if len(choices) < len(dimensions) or math.prod(len(c.texts) for c in choices) > 10_000:
        return None
    names = [c.field for c in choices]
    products = itertools.product(*(c.texts for c in choices))
    return [dict(zip(names, texts, strict=True)) for texts in products]


def suggest(trial: BaseTrial, dimensions: Sequence[Dimension]) -> dict[str, str]:
    """The settings of a trial, as texts of config fields."""
    found = {}
    for dimension in dimensions:
        if isinstance(dimension, Choices):
            value = trial.suggest_categorical(dimension.field, dimension.texts)
        elif dimension.is_whole:
            low, high = int(dimension.low), int(dimension.high)
            value = trial.suggest_int(dimension.field, low, high, log=dimension.is_log)
        else:
            ends = dimension.low, dimension.high
            value = float(
                f"{trial.suggest_float(dimension.field, *ends, log=dimension.is_log):.4g}"
            )
        found[dimension.field] = str(value)
    return found
