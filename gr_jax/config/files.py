"""Configs on disk: `FILE[:variant]` of Python, and the `config.json` of a workdir."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path

from gr_jax.config.checks import ConfigError, did_you_mean, field_type
from gr_jax.config.config import Config
from gr_jax.config.overrides import nearest
from gr_jax.errors import shortened, shown
from gr_jax.files import write_whole


class UnknownVariant(ConfigError):
    """The part of `--config` after the file name means nothing to the file."""


def unknown_variant(variant: str, variants: Sequence[str]) -> UnknownVariant:
    """The error a config file raises for a variant it does not have."""
    return UnknownVariant(
        f"--config: no variant {shown(variant)}, only {', '.join(variants)}"
        f"{did_you_mean(variant, variants)}"
    )


def load(spec: str) -> Config:
    """The config of `FILE` or `FILE:variant`.

    Raises:
      ConfigError: no such file, no `get_config` in it, an unknown variant, or a failure of the file
        (with its line).
    """
    file, _, variant = spec.partition(":")
    if not Path(file).is_file():
        raise ConfigError(f"--config: no file {shown(file)}{_nearest_file(file)}")
    module = types.ModuleType("config_file")
    module.__file__ = file
    try:
        exec(compile(Path(file).read_bytes(), file, "exec"), vars(module))
        if not hasattr(module, "get_config"):
            raise UnknownVariant(f"--config: {file!r} defines no get_config(variant)")
        config = module.get_config(variant) if variant else module.get_config()
    except UnknownVariant:
        raise
    except Exception as error:
        raise ConfigError(_place_of(error, file)) from error
    if not isinstance(config, Config):
        kind = type(config).__name__
        raise ConfigError(f"--config: get_config in {file!r} returned {kind}, not a Config")
    return config


def _nearest_file(file: str) -> str:
    folder = Path(file).parent
    names = sorted(str(path) for path in folder.glob("*.py")) if folder.is_dir() else []
    return did_you_mean(file, names) or did_you_mean(f"{file}.py", names)


def _place_of(error: Exception, file: str) -> str:
    """Line of the config file at which `error` came up, and its message."""
    line, trace = None, error.__traceback__
    while trace:  # the innermost line of the file itself, not of what it called
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == file else line
        trace = trace.tb_next
    what = str(error)
    if isinstance(error, SyntaxError):
        line, what = error.lineno, error.msg
    unknown = re.search(r"unexpected keyword argument '(\w+)'", what)
    hint = nearest(unknown[1]) if unknown and "Did you mean" not in what else ""
    kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
    return f"{file}{f':{line}' if line else ''}: {kind}{what}{hint}"


def to_dict(config: Config) -> dict:
    """The config as nested plain dicts, as written to `config.json`."""
    return dataclasses.asdict(config)


def from_dict(values: object) -> Config:
    """The config of `to_dict`; lists (JSON has no tuples) become tuples again.

    Raises:
      ConfigError: a field this version does not know, or a value of another type.
    """
    return _build(Config, values, "config")


def _build(cls: type, values: object, path: str) -> typing.Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a group of fields, got {shown(values)}")
    kinds = {f.name: field_type(f) for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise ConfigError(
            f"{path} has no field {shown(unknown[0])}: was it written by another version of gr_jax?"
        )
    made = {}
    for name, value in values.items():
        nested = dataclasses.is_dataclass(kinds[name])
        made[name] = _build(kinds[name], value, f"{path}.{name}") if nested else _tuples(value)
    return cls(**made)


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def save(config: Config, path: Path) -> None:
    """Write `config` as JSON, whole or not at all."""
    write_whole(path, json.dumps(to_dict(config), indent=2) + "\n")


def read(path: Path) -> Config:
    """Read a config written by `save`.

    Raises:
      ConfigError: not JSON, or not of this version.
    """
    try:
        return from_dict(json.loads(path.read_text()))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, 5,000 digits, a thousand levels
        raise ConfigError(f"{path}: not JSON: {shortened(str(error))}") from error


def to_python(config: Config, doc: str) -> str:
    """A config file with the fields that are not at their defaults, to be edited and trained.

    doc: its docstring.
    """
    # The name of a file is part of it, and may have quotes.
    doc = doc.replace("\\", "\\\\").replace('"', '\\"')
    groups, names = [], ["Config"]
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        default = getattr(Config(), f.name)
        if value == default:
            continue
        if not dataclasses.is_dataclass(value):
            groups.append(f"        {f.name}={value!r},\n")
            continue
        names.append(type(value).__name__)
        changed = {
            g.name: getattr(value, g.name)
            for g in dataclasses.fields(value)
            if getattr(value, g.name) != getattr(default, g.name)
        }
        lines = "".join(f"            {name}={part!r},\n" for name, part in changed.items())
        groups.append(f"        {f.name}={type(value).__name__}(\n{lines}        ),\n")
    imports = "".join(f"    {name},\n" for name in sorted(names))
    return (
        f'"""{doc}"""\n\nfrom gr_jax.config import (\n{imports})\n\n\n'
        f"def get_config() -> Config:\n    return Config(\n{''.join(groups)}    )\n"
    )
