"""Changes to a config by the dotted names of its fields, and the comments of those fields.

`{"model.width": "128"}` stands for `--config.model.width=128` on the command line.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import math
import typing
from collections.abc import Mapping

from gr_jax.config.checks import ConfigError
from gr_jax.config.config import Config
from gr_jax.errors import shown


def override_all(config: Config, overrides: Mapping[str, str]) -> Config:
    """`config` with every `{dotted field: text}` set, each text parsed as its field's type.

    All are set at once: two fields that have to fit each other can be changed in any order.

    >>> override_all(Config(), {"model.width": "128", "loss.kind": "group"}).model.width
    128

    Raises:
      ConfigError: an unknown field (with the nearest name), a value of another type, a broken rule.
    """
    changes: dict = {}
    for key, text in overrides.items():
        *groups, leaf = key.split(".")
        node, change, path = config, changes, "config"
        for name in groups:
            node, change = _field(node, name, path, key), change.setdefault(name, {})
            path = f"{path}.{name}"
        old = _field(node, leaf, path, key)
        if dataclasses.is_dataclass(old):
            raise ConfigError(
                f"{path}.{leaf} is a group of fields: set one of {', '.join(vars(old))}"
            )
        change[leaf] = parse_as(text, type(old), f"{path}.{leaf}")
    return _replace(config, changes)


def _field(node: typing.Any, name: str, path: str, key: str) -> typing.Any:
    if not dataclasses.is_dataclass(node):
        raise ConfigError(f"{path} is a value and has no field {shown(name)}")
    if name not in vars(node):
        hint = nearest(key) or f"; it has {', '.join(vars(node))}"
        raise ConfigError(f"{path} has no field {shown(name)}{hint}")
    return getattr(node, name)


def _replace(config: typing.Any, changes: dict) -> typing.Any:
    new = {
        k: _replace(getattr(config, k), v) if isinstance(v, dict) else v for k, v in changes.items()
    }
    return dataclasses.replace(config, **new)


def parse_as(text: str, kind: type, path: str) -> typing.Any:
    """The value of a field of type `kind`, from its text on the command line.

    Raises:
      ConfigError: it is of another type; begins with `path`.
    """
    if kind is str:
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    if kind is float and type(value) is int and value.bit_length() < 1024:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{path}: expected {kind.__name__}, got {shown(text)}")
    return value


def comments(config: typing.Any, prefix: str = "") -> dict[str, str]:
    """`{dotted name: comment}`: the comment behind each field that is a value, or else above it."""
    found, lines = {}, inspect.getsource(type(config)).splitlines()
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            found |= comments(value, f"{prefix}{f.name}.")
            continue
        at = next((i for i, line in enumerate(lines) if line.startswith(f"    {f.name}: ")), 0)
        _, _, comment = lines[at].partition("  # ")
        found[prefix + f.name] = comment or _comment_above(lines, at)
    return found


def _comment_above(lines: list[str], at: int) -> str:
    first = at
    while lines[first - 1].startswith("    # "):
        first -= 1
    return " ".join(line.removeprefix("    # ") for line in lines[first:at])


def leaves(config: typing.Any, prefix: str = "") -> dict[str, object]:
    """`{dotted name: value}` of every field that is no group, in the order of the source."""
    found = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        nested = dataclasses.is_dataclass(value)
        found |= leaves(value, f"{prefix}{f.name}.") if nested else {prefix + f.name: value}
    return found


def nearest(key: str) -> str:
    """`; did you mean ...?` for an unknown dotted name, whose last part may be in another group."""
    names = list(leaves(Config()))
    last = {name: name.rpartition(".")[2] for name in names}
    leaf = difflib.get_close_matches(key.rpartition(".")[2], set(last.values()), 1, cutoff=0.7)
    hints = [name for name in names if leaf and last[name] == leaf[0]]
    hints = difflib.get_close_matches(key, hints, 1, cutoff=0.8) or hints
    return f"; did you mean {' or '.join(f'config.{h}' for h in hints)}?" if hints else ""
