"""Named shapes for benchmarks, lowering tests and block-size tuning, and their least cost.

    full length   "4x128-l4096": heads x width, one sequence of 4096 in every row
    skewed        "4x128-sparse80": log-normal lengths packed back to back in rows of 8192, at most
                  4096 tokens each
    padded        "4x128-sparse80-padded": the same users, each in a row of its own, as if all had
                  full length
    data sets     "ml_1m-large", "books": lengths, heads and dtype of the configs
    with "-bias" at the end: position and time table

Sparsity is the share of work that a padded dense kernel would do in vain:
1 - sum n_i^2 / (users * N^2), with n_i the tokens of user i and N the maximum length; the causal
half is in both and cancels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import jax.numpy as jnp  # only for the name bfloat16: nothing here runs on a device
import numpy as np

TOKENS = 65536  # row tokens of a benchmark case
TIME_BUCKETS = 129
FULL_LENGTHS = (1024, 2048, 4096, 8192, 16384)
HEADS = ((4, 64), (4, 128), (4, 256), (8, 64))
# Sparsity in percent -> median length of the log-normal (spread 1, clipped to 4096) that has it.
SPARSE_MEDIANS = {50: 2555.0, 80: 993.0, 95: 382.0}


@dataclass(frozen=True)
class Spec:
    """One benchmark case."""

    name: str
    rows: int  # R
    length: int  # L, tokens in a row
    heads: int  # H
    qk_width: int  # A
    v_width: int  # V
    max_length: int  # N, longest sequence and normaliser
    # of the log-normal lengths before clipping; 0 = every sequence has max_length tokens
    median: float = 0.0
    spread: float = 1.0  # standard deviation of the logarithm of the length
    shortest: int = 1  # lengths are clipped to shortest .. max_length
    dtype: str = "bfloat16"  # of q, k and v
    bias: bool = False  # position and time table


def _named() -> dict[str, Spec]:
    skew = {"ml_1m": (97.5, 0.75, 18), "books": (8.2, 0.9, 4)}  # median, spread, shortest
    data_sets = [
        ("ml_1m-base", 256, 256, 1, 50, 200),  # rows, length, heads, width, max_length
        ("ml_1m-large", 256, 256, 2, 25, 200),
        ("books", 1024, 64, 4, 16, 50),
        ("books-large", 1024, 64, 8, 8, 50),
    ]
    base = [Spec("tiny", 2, 64, 2, 8, 8, 24, median=10.0, dtype="float32")]
    for name, rows, length, heads, width, n in data_sets:
        shape = rows, length, heads, width, width, n
        base.append(Spec(name, *shape, *skew[name.partition("-")[0]], "float32"))
    base += [replace(spec, name=spec.name + "-bf16", dtype="bfloat16") for spec in base[1:]]
    for heads, width in HEADS:
        for n in FULL_LENGTHS:
            base.append(Spec(f"{heads}x{width}-l{n}", TOKENS // n, n, heads, width, width, n))
        for percent, median in SPARSE_MEDIANS.items():
            name, n = f"{heads}x{width}-sparse{percent}", 4096
            packed = Spec(name, TOKENS // (2 * n), 2 * n, heads, width, width, n, median)
            base.append(packed)
            if (heads, width) == (4, 128):
                alone = {"rows": len(lengths(packed)), "length": n, "median": 0.0}
                base.append(replace(packed, name=name + "-padded", **alone))
    with_bias = lambda spec: replace(spec, name=spec.name + "-bias", bias=True)
    return {spec.name: spec for plain in base for spec in (plain, with_bias(plain))}


@functools.cache
def _packing(spec: Spec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lengths of the sequences, longest first, and the row of each.

    Lengths are evenly spaced quantiles, so a case of few users has the distribution too; of all
    numbers of users the largest that fits.
    """
    if not spec.median:
        per_row = spec.length // spec.max_length
        return (spec.max_length,) * (spec.rows * per_row), tuple(
            np.repeat(np.arange(spec.rows), per_row).tolist()
        )
    normal = NormalDist(math.log(spec.median), spec.spread)
    users = int(2 * spec.rows * spec.length / spec.median)
    while True:
        quantiles = [math.exp(normal.inv_cdf((i + 0.5) / users)) for i in range(users)]
        tokens = sorted(
            (round(min(max(x, spec.shortest), spec.max_length)) for x in quantiles), reverse=True
        )
        excess = sum(tokens) / (spec.rows * spec.length)
        rows = _first_fit(tokens, spec) if excess <= 1 else None
        if rows is not None:
            return tuple(tokens), rows
        users = min(users - 1, int(users / excess * 0.995) if excess > 1 else int(users * 0.99))


def _first_fit(tokens: list[int], spec: Spec) -> tuple[int, ...] | None:
    """The first row with room for each sequence; None when one does not fit."""
    free, rows = np.full(spec.rows, spec.length), []
    for n in tokens:
        row = int(np.argmax(free >= n))
        if free[row] < n:
            return None
        free[row] -= n
        rows.append(row)
    return tuple(rows)


def lengths(spec: Spec) -> tuple[int, ...]:
    """Tokens of every sequence, longest first."""
    return _packing(spec)[0]


def sparsity(spec: Spec) -> float:
    """1 - sum n_i^2 / (users * N^2)."""
    tokens = np.array(lengths(spec), np.float64)
    return 1 - float((tokens**2).sum()) / (len(tokens) * spec.max_length**2)


def inputs(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """The array arguments of `hstu_attention` as numpy arrays.

    The order of the users in a row is random. q, k, v: normal, in the spec's dtype, at padding too;
    tables float32; times in int32 seconds, with log-normal gaps of a median of a minute, and the
    query time of a token is the time of the event after it.
    """
    rng = np.random.default_rng(seed)
    tokens, rows = _packing(spec)
    segments = np.zeros((spec.rows, spec.length), np.int32)
    times = np.zeros((spec.rows, spec.length), np.int32)
    query_times = np.zeros((spec.rows, spec.length), np.int32)
    ends = np.zeros(spec.rows, int)
    for user in rng.permutation(len(tokens)):
        row, n = rows[user], tokens[user]
        at = slice(ends[row], ends[row] + n)
        ends[row] += n
        segments[row, at] = segments[row].max() + 1
        clock = np.cumsum(np.minimum(rng.lognormal(math.log(60), 2.0, n + 1), 1e5)).astype(np.int32)
        times[row, at], query_times[row, at] = clock[:-1], clock[1:]
    dtype = jnp.dtype(spec.dtype)
    width = {"q": spec.qk_width, "k": spec.qk_width, "v": spec.v_width}
    shape = spec.rows, spec.length, spec.heads
    arrays = {
        name: rng.standard_normal((*shape, n), np.float32).astype(dtype)
        for name, n in width.items()
    }
    arrays["segments"] = segments
    if spec.bias:
        arrays["position_table"] = rng.standard_normal(spec.max_length, np.float32)
        arrays["time_table"] = rng.standard_normal(TIME_BUCKETS, np.float32)
        arrays |= {"query_times": query_times, "key_times": times}
    return arrays


def options(spec: Spec) -> dict:
    """The static arguments of `hstu_attention`; the scale keeps q.k of order 1."""
    return {"max_length": spec.max_length, "scale": 1 / math.sqrt(spec.qk_width)}


def flops(spec: Spec, *, backward: bool = False) -> float:
    """Floating-point operations of the matmuls in the causal-half convention.

    Forward: 2 sum n_i^2 H (A + V) / 2, the half of two dense matmuls; backward: 2.5 times that,
    five matmuls.
    """
    pairs = float(sum(n * n for n in lengths(spec)))
    return pairs * spec.heads * (spec.qk_width + spec.v_width) * (2.5 if backward else 1.0)


def bytes_floor(spec: Spec, *, backward: bool = False) -> float:
    """Bytes that have to move: each input of the op read once and each result written once.

    Forward: q, k, v in and the output out; backward: q, k, v and the output's gradient in, three
    gradients out; the integers of a token once each. Padding is not counted, nor are the tables.
    """
    per_head = (
        4 * spec.qk_width + 3 * spec.v_width if backward else 2 * spec.qk_width + 2 * spec.v_width
    )
    integers = 4 * (3 if spec.bias else 1)
    return float(sum(lengths(spec))) * (
        spec.heads * per_head * jnp.dtype(spec.dtype).itemsize + integers
    )


SPECS = _named()
