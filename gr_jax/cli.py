"""The command line of every command: its flags, `--config=FILE[:variant]`, `--config.a.b=value`.

A command reads

    def main(argv: list[str]) -> None:
        flags = {"workdir": (Path, Path("runs/last"), "folder of the run")}
        args = cli.parse(argv, doc=__doc__, flags=flags)
        ...

    if __name__ == "__main__":
        cli.run(main)
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gr_jax.config import Config, ConfigError
from gr_jax.config.files import load
from gr_jax.config.overrides import comments, leaves, override_all
from gr_jax.errors import line_of, shortened, shown

REQUIRED: typing.Any = object()  # as a default: the flag has to be given

# (type, default, help); the type is str, int, float or Path; bool for a switch; words for a choice;
# [type] for a flag that may be given several times, whose values may also stand without its name.
Flag = tuple[typing.Any, typing.Any, str]


def parse(
    argv: Sequence[str],
    *,
    doc: str | None,
    flags: Mapping[str, Flag] | None = None,
    config: typing.Literal["required", "optional", "none"] = "required",
) -> argparse.Namespace:
    """Read a command line; `--help` prints the docstring, the flags and the config fields.

    Args:
      argv: the words after the command's name.
      doc: the command's docstring.
      flags: `{name: (type, default, help)}`; `--some-name` and `--some_name` are the same flag.
      config: `--config` is required, optional, or no flag of the command.

    Returns:
      One attribute per flag and `debug`; unless `config` is "none" also `config`, with overrides
      applied, and `config_spec`, its `FILE[:variant]`, both None if not given, and `overrides`, the
      texts of the fields that were set.

    Raises:
      ConfigError: anything wrong, in one line with the nearest name where there is one.
    """
    flags = {**(flags or {}), "debug": (bool, False, "show the traceback of an error")}
    given, overrides, spec, wants_help = _split(argv, flags, config)
    if wants_help:
        print(help_text(doc, flags, config, load(spec) if spec else None))
        raise SystemExit(0)
    args = {name: default for name, (_, default, _) in flags.items()}
    args |= {name: _convert(text, flags[name][0], f"--{name}") for name, text in given.items()}
    missing = [name for name, value in args.items() if value is REQUIRED]
    if config == "required" and spec is None:
        missing.append("config")
    if missing:
        shown = " and ".join(f"--{name}={_example(flags, name)}" for name in missing)
        raise ConfigError(f"{shown} must be given; see --help")
    if config == "none":
        return argparse.Namespace(**args)
    made = override_all(load(spec), overrides) if spec else None
    return argparse.Namespace(**args, config=made, config_spec=spec, overrides=overrides)


def refuse_overrides(args: argparse.Namespace) -> None:
    """Raise a ConfigError if config fields are set and there is no config that they change."""
    if args.overrides and args.config is None:
        field = next(iter(args.overrides))
        raise ConfigError(f"--config.{field} changes a config: give --config=FILE too")


def _split(argv: Sequence[str], flags: Mapping[str, Flag], config: str):
    """Texts of the flags and of the config fields, the config file, and True for --help."""
    given, overrides, spec, wants_help, words = {}, {}, None, False, list(argv)
    many = [name for name, (kind, *_) in flags.items() if isinstance(kind, list)]
    told: dict[str, str] = {}  # every flag that may be given once
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            wants_help = True
            continue
        if not word.startswith("-") or word.strip("-") == "":
            if many:
                given.setdefault(many[0], []).append(word)
                continue
            raise ConfigError(f"unexpected argument {shown(word)}: flags look like --name=value")
        name, equals, text = word.partition("=")
        name = name.lstrip("-")
        is_config = config != "none" and name.split(".")[0] == "config"
        name = name if is_config else name.replace("-", "_")
        if not is_config and name not in flags:
            hint = _nearest_flag(name, flags, config)
            raise ConfigError(f"unknown flag --{shortened(name)}{hint}")
        if not equals and not is_config and flags[name][0] is bool:
            text = "true"
        elif not equals:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"--{name} needs a value: --{name}={_example(flags, name)}")
            text = words.pop(0)
        if name in many:
            given.setdefault(name, []).append(text)
            continue
        if name in told:  # else the last would silently win
            raise ConfigError(
                f"--{name} is given twice, as {shown(told[name])} and {shown(text)}: give it once"
            )
        told[name] = text
        if not is_config:
            given[name] = text
        elif name == "config":
            spec = text
        else:
            overrides[name.removeprefix("config.")] = text
    return given, overrides, spec, wants_help


def _nearest_flag(name: str, flags: Mapping[str, Flag], config: str) -> str:
    known = [*flags, "help"] + (["config"] if config != "none" else [])
    hint = difflib.get_close_matches(name.split(".")[0], known, 1)
    if hint:
        return f"; did you mean --{hint[0] + name[len(name.split('.')[0]) :]}?"
    fields = (
        [f for f in leaves(Config()) if name in (f, f.rpartition(".")[2])]
        if config != "none"
        else []
    )
    nearest = " or ".join(f"--config.{f}" for f in fields)
    return (
        f"; did you mean {nearest}?"
        if nearest
        else f"; there are {', '.join(f'--{k}' for k in known)}"
    )


def _example(flags: Mapping[str, Flag], name: str) -> str:
    if name not in flags:
        return "FILE[:variant]" if name == "config" else "value"
    kind = flags[name][0]
    if isinstance(kind, list):
        kind = kind[0]
    return "|".join(kind) if isinstance(kind, tuple) else kind.__name__.upper()


def _convert(text: typing.Any, kind: typing.Any, flag: str) -> typing.Any:
    if isinstance(kind, list):
        return [_convert(one, kind[0], flag) for one in text]
    if isinstance(kind, tuple):
        if text not in kind:
            hint = difflib.get_close_matches(text, kind, 1)
            nearest = f"; did you mean {hint[0]!r}?" if hint else ""
            raise ConfigError(f"{flag}={shown(text)}: must be one of {', '.join(kind)}{nearest}")
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{flag}: expected true or false, got {shown(text)}")
        return text.lower() == "true"
    if not text and kind is not str:
        raise ConfigError(f"{flag} needs a value")
    try:
        value = Path(text).expanduser() if kind is Path else kind(text)
    except ConfigError:
        raise
    except (ValueError, RuntimeError):  # RuntimeError: the home of a user who is not there
        raise ConfigError(f"{flag}: expected {kind.__name__}, got {shown(text)}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{flag}: expected a finite number, got {shown(text)}")
    if type(value) is int and value.bit_length() > 63:
        raise ConfigError(f"{flag}={shown(value)}: must fit in 64 bits")
    return value


def help_text(
    doc: str | None, flags: Mapping[str, Flag], config: str, shown: Config | None = None
) -> str:
    """The docstring, a line per flag, and one per config field with its value in `shown`."""
    lines = [(doc or "").strip(), "", "Flags:"]
    rows = [
        (f"--{n}" + ("" if f[0] is bool else f"={_example(flags, n)}"), _about(f))
        for n, f in flags.items()
    ]
    if config != "none":
        rows.insert(
            0,
            (
                "--config=FILE[:variant]",
                "the config file" + ("" if config == "required" else "; may be absent"),
            ),
        )
    with_file = "" if config == "none" else "; with --config=FILE, the values of that file"
    rows.append(("--help", f"print this text{with_file}"))
    lines += _table(rows)
    if config != "none":
        made = shown or Config()
        about = comments(made)
        lines += [
            "",
            "Config fields, each set by --config.NAME=value (here with their "
            + ("values):" if shown else "defaults):"),
        ]
        lines += _table(
            [(f"{n}={v!r}" if n != "mesh.rules" else n, about[n]) for n, v in leaves(made).items()]
        )
    return "\n".join(lines)


def _about(flag: Flag) -> str:
    kind, default, about = flag
    if default is REQUIRED:
        return f"{about} (must be given)"
    return about if kind is bool or default in (None, "") else f"{about} (default {default})"


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = min(40, max(len(left) for left, _ in rows))
    return [f"  {left:<{width}}  {right}" for left, right in rows]


def run(main: Callable[[list[str]], int | None]) -> typing.NoReturn:
    """Run `main(argv)` and exit with its code; with 2 and one line after a user's mistake.

    A reader of the output that has gone, such as `| head`, is no mistake: the command goes on.
    """
    argv = sys.argv[1:]
    sys.stdout = typing.cast("typing.TextIO", _UntilReaderGoes(sys.stdout))
    try:
        code = main(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = line_of(error)
        if not line:
            raise
        if "--debug" in argv:
            traceback.print_exc()
        print(f"error: {line}", file=sys.stderr)
        _forget_what_cannot_be_written()
        sys.exit(2)
    sys.exit(code or 0)


class _UntilReaderGoes:
    """A stream that drops what is written once nobody reads it any more."""

    def __init__(self, stream):  # of any class: tests and notebooks have their own
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            _to_nowhere(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            _to_nowhere(self._stream)

    def __getattr__(self, name: str) -> typing.Any:
        return getattr(self._stream, name)


def _to_nowhere(stream: typing.TextIO) -> None:
    """Let the file descriptor of a stream, and what it still holds, go to /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    stream.flush()


def _forget_what_cannot_be_written() -> None:
    """Drop output that a full disk refused, which Python would try to write again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        _to_nowhere(sys.stdout)
