"""Errors as lines: which are the user's to mend, and what of the user's text they repeat."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar, no_type_check

F = TypeVar("F", bound=Callable)

LONGEST = 100  # characters of a user's text that an error repeats
LONGEST_LINE = 1000  # characters of an error


def tells_types(function: F) -> F:
    """Mark a function that tells a wrong type in a line, like any other mistake.

    Types that the tests check on every call are not checked there; its annotations are for readers
    and type checkers, which `typing.no_type_check` would take them from.
    """
    return no_type_check(function)


def shown(value: object) -> str:
    """The value as an error shows it: its `repr`, of which the middle is left out if it is long.

    >>> shown("films")
    "'films'"
    >>> len(shown("x" * 10**6))
    100
    """
    if isinstance(value, str) and len(value) > 2 * LONGEST:  # no repr of a megabyte
        value = value[:LONGEST] + value[-LONGEST:]
    try:
        return shortened(repr(value))
    except (ValueError, RecursionError):  # an integer of 5,000 digits, a list of a thousand levels
        return f"a {type(value).__name__} that is too large to be shown"


def shortened(text: str, longest: int = LONGEST) -> str:
    """The text in one line of at most `longest` characters; of a longer one the middle is left out.

    >>> shortened("data/" + "x" * 100 + "/log.csv", 24)
    'data/xxxxxx...xx/log.csv'
    """
    if len(text) > longest:
        text = text[: longest // 2 - 1] + "..." + text[longest // 2 + 2 - longest :]
    text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates cannot be printed
    return " ".join(text.splitlines())


def line_of(error: BaseException) -> str:
    """What an error tells the user, in one line; "" for a fault of the program.

    Not a fault of the program: our own errors, what the system refuses (files, disks, sockets,
    memory), numbers beyond the range of a type, text that is not UTF-8 or no JSON, and a missing
    device.
    """
    if isinstance(error, OSError):
        reason = error.strerror or str(error).strip("<>") or type(error).__name__
        place = f": {shortened(str(error.filename), 300)}" if error.filename is not None else ""
        return shortened(f"{reason}{place}", LONGEST_LINE)
    module = type(error).__module__.split(".")[0]
    ours = isinstance(error, ValueError) and module in ("gr_jax", "pallas_kernels")
    unsupported = isinstance(error, NotImplementedError) and "pallas_kernels" in _raised_in(error)
    if ours or unsupported:
        return shortened(str(error), LONGEST_LINE)
    text = shortened(str(error).partition("\n")[0], 300) + "; --debug shows where"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"out of memory: {text}"
    if isinstance(error, OverflowError):
        return f"a number is out of range: {text}"
    if _raised_in(error).partition(".")[0] == "json":
        return f"a JSON file is damaged: {text}"
    if isinstance(error, UnicodeError):
        return f"text cannot be read or written in this encoding: {text}"
    if _raised_in(error) == "jax._src.xla_bridge":  # which looks for devices
        asked = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        return f"{asked}: no such device here; JAX_PLATFORMS=cpu computes without it ({text})"
    return ""


def _raised_in(error: BaseException) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "") if trace else ""
