"""Fair timing of several programs: alternating bursts of calls, with changing inputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Program(NamedTuple):
    """A program to time.

    `launch(i)` starts call i, which may go on after it returns; `wait(result)` waits for it.
    """

    launch: Callable[[int], object]
    wait: Callable[[Any], Any]


def interleaved(
    programs: Mapping[str, Program],
    *,
    rounds: int = 9,
    burst_seconds: float = 0.02,
    slow_seconds: float = 0.5,
) -> dict[str, dict[str, float]]:
    """`ms` (median over rounds), `min_ms` and `calls` per program.

    A round times one burst of every program, so that a slow spell of the machine meets all of them.
    A burst is the number of calls that takes about `burst_seconds`, launched without waiting in
    between, so that launches hide behind the work. Programs whose call takes more than
    `slow_seconds` get 3 rounds. Run a program once before: this expects no compile.
    """
    calls, samples = {}, {name: [] for name in programs}
    for name, program in programs.items():
        _burst(program, 1, 0)
        calls[name] = max(1, min(100, round(burst_seconds / max(_burst(program, 2, 1), 1e-6))))
    for number in range(rounds):
        for name, program in programs.items():
            if number < 3 or statistics.median(samples[name]) <= slow_seconds:
                samples[name].append(_burst(program, calls[name], number * calls[name]))
    return {
        name: {
            "ms": 1e3 * statistics.median(seconds),
            "min_ms": 1e3 * min(seconds),
            "calls": calls[name],
        }
        for name, seconds in samples.items()
    }


def _burst(program: Program, calls: int, first: int) -> float:
    """Seconds per call of a burst; the device runs calls in order, so the last result ends it."""
    start = time.perf_counter()
    for i in range(first, first + calls):
        result = program.launch(i)
    program.wait(result)
    return (time.perf_counter() - start) / calls
