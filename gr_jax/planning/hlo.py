"""The collectives in a compiled program, with their sizes and how often each runs."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_WIDTH = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", re.M)
_OP = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLEE = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]|replica_groups=\{\{([\d,]*)\}")
# sizes of all axes, and the axes of a group
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")


@dataclass(frozen=True)
class Collective:
    """Equal collectives of a program."""

    kind: str
    shape: str  # of the arrays that it makes, on one device
    devices: int  # that take part
    # bytes of the whole array: that of a device after an all-gather or before a reduce-scatter
    payload: float
    times: int  # that it runs in one call of the program


def wire_bytes(kind: str, payload: float, devices: int) -> float:
    """Bytes that a device sends (and receives) in a collective by a ring or pairwise exchange."""
    share = (devices - 1) / devices
    return {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share) * payload


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a compiled program's text on a mesh of `devices`, the largest first.

    The body of a loop counts once for each trip that the compiler knows of.
    """
    bodies, entry = _computations(text)
    times = _times(bodies, entry)
    found: Counter[tuple[str, str, int, float]] = Counter()
    for name, lines in bodies.items():
        for line in lines:
            if (match := _OP.search(line)) and times[name]:
                found[_collective(match, devices)] += times[name]
    made = [Collective(*key, times=count) for key, count in found.items()]
    return sorted(made, key=lambda c: -c.payload * c.times)


def _collective(match: re.Match[str], devices: int) -> tuple[str, str, int, float]:
    """Kind, shape, devices of a group and payload of one operation."""
    made, kind, start, rest = match.groups()
    arrays = _ARRAY.findall(made)
    if start and kind in ("all-gather", "reduce-scatter", "collective-permute"):
        # (operands, results, ..): the results, without the scalars of a permutation
        arrays = [array for array in arrays if array[1] or kind != "collective-permute"]
        arrays = arrays[len(arrays) // 2 :]
    group = _group(rest, devices)
    payload = sum(_bytes(*array) for array in arrays) * (group if kind == "reduce-scatter" else 1)
    shape = " ".join(f"{dtype}[{sizes}]" for dtype, sizes in arrays)
    return kind, shape, group, float(payload)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the first one to run."""
    bodies, entry = {}, ""
    heads = list(_COMPUTATION.finditer(text))
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        bodies[head[2]] = text[
            head.end() : following.start() if following else len(text)
        ].splitlines()
        entry = head[2] if head[1] else entry
    return bodies, entry


def _times(bodies: dict[str, list[str]], entry: str) -> Counter[str]:
    """Number of runs of each computation in one call of `entry`; of two branches both count."""
    times: Counter[str] = Counter()

    def run(name: str, count: int) -> None:
        times[name] += count
        for line in bodies.get(name, ()):
            callees = _CALLEE.findall(line)
            if branches := _BRANCHES.search(line):
                callees += [branch.strip().lstrip("%") for branch in branches[1].split(",")]
            trips = _TRIPS.search(line)
            for callee in callees:
                run(callee, count * (int(trips[1]) if trips else 1))

    run(entry, 1)
    return times


def _group(rest: str, devices: int) -> int:
    """Devices of one replica group; all where none is named."""
    if match := _MESH_GROUPS.search(rest):
        sizes = dict(axis.split("=") for axis in match[1].split(","))
        return math.prod(int(sizes[axis]) for axis in match[2].split(","))
    match = _GROUPS.search(rest)
    if match is None:
        return devices
    return int(match[1]) if match[1] else len(match[2].split(",")) if match[2] else devices


def _bytes(dtype: str, sizes: str) -> int:
    size = _WIDTH.get(dtype, 4)
    for part in filter(None, sizes.split(",")):
        size *= int(part)
    return size
