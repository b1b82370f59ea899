"""Time of a ranking request by candidates m, history n and micro-batch b, with M-FALCON or not.

    python -m experiments.serving.mfalcon  # the table and the figure; about an hour on 2 CPU cores
    python -m experiments.serving.mfalcon --quick  # a tiny model, a minute; writes to runs/mfalcon/

`cached`: the history lies in the cache. `cold`: it is encoded first. `naive`: one forward over
history and candidate for each candidate, the faster of one and of four per call; a few are timed
and multiplied by m. `append`: one token into the cache. All are medians, results on the host;
`error` is the largest difference of a logit from one pass over the history and 16 candidates.
Histories have n tokens, one for each event (stream "sum").

Floor for m = n = 1024, width 256 (q, k and v: 256 over all heads), 8 blocks, in FLOPs. A token
costs 2 * 256 * 5 * 256 = 0.655 M in the projections of a block, a pair of tokens 2 * (256 + 256) =
1024.
    cached  8 * 1024 * (0.655 M + 1025 * 1024)                            14.0 G
    encode  8 * (1024 * 0.655 M + 1024 * 1025 / 2 * 1024)                  9.7 G
    cold                                                                  23.6 G
    naive   1024 * 8 * (1025 * 0.655 M + 1025 * 1026 / 2 * 1024)           9.9 T
so that naive is 419 times cold and 710 times cached.
A forward that computes the masked half of the pairs too, as the XLA implementation does for rows of
more than 512 tokens, needs 14.0 G for the encode and 14.3 T for naive: 512 times cold, 1024 times
cached. `floor_ms` of each number is its FLOPs, with the causal half only, over the FLOP/s of a
matrix product of this machine.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.common import figures
from experiments.common.results import RESULTS, ROOT, arguments, command_line, keep
from gr_jax.config import ModelConfig
from gr_jax.data.batches.batch import Batch
from gr_jax.models.recommender import functional
from gr_jax.serving.history_tokens import Tokens
from gr_jax.serving.m_falcon import Candidates, Scorer

ITEMS, CHECKED = 10_000, 16
FULL = dict(
    width=256,
    blocks=8,
    heads=4,
    n=(128, 1024, 4096),
    m=(1, 16, 128, 1024, 16384),
    b=(128, 512, 1024),
)
QUICK = dict(width=32, blocks=2, heads=2, n=(64, 128), m=(1, 16, 256), b=(16, 64))


def pair_flops(config: ModelConfig) -> int:
    """Of one query and one key in a block, over all heads."""
    return 2 * config.num_heads * (config.qk_width + config.v_width)


def token_flops(config: ModelConfig) -> int:
    """Of one token in the projections of a block."""
    heads_v, heads_a = config.num_heads * config.v_width, config.num_heads * config.qk_width
    return 2 * config.width * (2 * heads_v + 2 * heads_a) + 2 * heads_v * config.width


def encode_flops(config: ModelConfig, n: int) -> int:
    """Of a forward over n tokens, the causal half of the pairs only."""
    return config.num_blocks * (n * token_flops(config) + n * (n + 1) // 2 * pair_flops(config))


def peek_flops(config: ModelConfig, n: int, m: int) -> int:
    """Of m tokens that each see n cached ones and themselves."""
    return config.num_blocks * m * (token_flops(config) + (n + 1) * pair_flops(config))


def seconds(run: Callable[[], Any], *, at_least: int = 3, within: float = 6.0) -> float:
    """Median time of a call, after one that is not timed.

    Timed are `at_least` calls, fewer if they take more than twice `within` seconds together, more
    while they fit into it, 30 at most.
    """
    run()
    times: list[float] = []
    while (
        not times
        or sum(times) < (2 * within if len(times) < at_least else within)
        and len(times) < 30
    ):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def flops_per_second() -> float:
    """Of a matrix product in float32: the most that this machine gives us."""
    a = jnp.ones((1024, 1024), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    return 2 * 1024**3 / seconds(lambda: product(a).block_until_ready(), at_least=10)


def history(n: int) -> Tokens:
    """Random items with random actions, some minutes apart."""
    rng = np.random.default_rng(n)
    times = np.cumsum(rng.integers(1, 1000, n)).astype(np.int32)
    return Tokens(
        rng.integers(1, ITEMS + 1, n).astype(np.int32),
        times,
        1 + 2 * rng.integers(0, 2, n).astype(np.int32),
    )


def asked(tokens: Tokens, m: int) -> Candidates:
    """m random candidates, a minute after the last event."""
    item = np.random.default_rng(m).integers(1, ITEMS + 1, m).astype(np.int32)
    return Candidates(item, int(tokens.time[-1]) + 60, action=3)


def whole_rows(tokens: Tokens, given: Candidates, rows: int, *, together: bool) -> Batch:
    """The history in each row, and behind it one of the candidates, or all of them as such."""
    n, m = len(tokens), len(given.item) if together else 1
    items = given.item[None] if together else given.item[:rows, None]
    behind = lambda past, values: np.concatenate([np.tile(past, (rows, 1)), values], 1).astype(
        np.int32
    )
    same = lambda value: np.full((rows, m), value)
    times = behind(tokens.time, same(given.time))
    assert tokens.action is not None
    fields: dict[str, Any] = dict(
        item=behind(tokens.item, items),
        time=times,
        query_time=times,
        position=behind(np.arange(n), same(n)),
        segment=np.ones_like(times),
        action=behind(tokens.action, same(given.action)),
        target=behind(np.zeros(n), same(1)) != 0 if together else None,
    )
    return Batch(**fields)


def naive_seconds(rank: Callable, params: dict, tokens: Tokens) -> float:
    """Seconds per candidate of one forward each, by calls of one or of four: the faster."""
    batches = [whole_rows(tokens, asked(tokens, rows), rows, together=False) for rows in (1, 4)]
    return min(seconds(lambda b=b: np.asarray(rank(params, b))) / len(b.item) for b in batches)


def append_seconds(scorer: Scorer, tokens: Tokens) -> float:
    """Seconds to append one token to a cached history, until it is written."""
    count, times = 20, []
    entry = scorer.history([tokens[: -count - 1]])[0]
    for at in range(len(tokens) - count - 1, len(tokens)):
        start = time.perf_counter()
        entry = scorer.append(entry, tokens[at : at + 1], in_place=True)
        jax.block_until_ready(entry.cached)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first compiles


def measure(config: ModelConfig, n: int, sizes: dict, rate: float) -> tuple[list[dict], dict]:
    """Results of a history of n tokens: one for each b and m, and those of no b and m."""
    graphdef, init = functional(
        config, num_items=ITEMS, max_length=n + 1, num_actions=1, num_tasks=1
    )
    params, tokens = init(jax.random.key(0)), history(n)
    rank = jax.jit(lambda params, batch: nnx.merge(graphdef, params).rank(batch))
    naive = naive_seconds(rank, params, tokens)
    few = asked(tokens, CHECKED)
    expected = np.asarray(rank(params, whole_rows(tokens, few, 1, together=True)))[0, -CHECKED:]

    def scorer_of(b: int) -> Scorer:
        return Scorer(graphdef, params, micro_batches=(b,), buckets=(n,))

    once = scorer_of(1)
    encode = seconds(lambda: jax.block_until_ready(once.history([tokens])[0].cached))
    shared = {
        "n": n,
        "encode_ms": 1e3 * encode,
        "encode_floor_ms": 1e3 * encode_flops(config, n) / rate,
        "append_ms": 1e3 * append_seconds(once, tokens),
        "naive_ms_per_candidate": 1e3 * naive,
    }
    rows = []
    for b in sizes["b"]:
        scorer = scorer_of(b)
        (entry,) = scorer.history([tokens])
        error = float(np.abs(scorer.score([entry], [few])[0] - expected).max())
        for m in sizes["m"]:
            given = asked(tokens, m)
            cached = seconds(
                lambda scorer=scorer, entry=entry, given=given: scorer.score([entry], [given])
            )
            cold = seconds(
                lambda scorer=scorer, given=given: scorer.score(scorer.history([tokens]), [given])
            )
            row = {"n": n, "b": b, "m": m, "cached_ms": 1e3 * cached, "cold_ms": 1e3 * cold}
            row |= {"naive_ms": 1e3 * naive * m, "error": error}
            row |= {"cached_floor_ms": 1e3 * peek_flops(config, n, m) / rate}
            row |= {"naive_over_cached": naive * m / cached, "naive_over_cold": naive * m / cold}
            rows.append(row)
            print(line(row), flush=True)
    return rows, shared


def line(row: dict) -> str:
    """A row of the table."""
    times = "".join(
        f"{row[name]:12.2f}" for name in ("cached_ms", "cold_ms", "naive_ms", "cached_floor_ms")
    )
    ratios = f"{row['naive_over_cached']:12.0f}{row['naive_over_cold']:12.0f}"
    return f"{row['n']:6}{row['b']:6}{row['m']:7}{times}{ratios}   {row['error']:.1e}"


def linear_fits(rows: list[dict]) -> list[dict]:
    """Slope and intercept of time against m, for m >= b, by least squares of the relative error."""
    fits = []
    for n, b in sorted({(row["n"], row["b"]) for row in rows}):
        some = [row for row in rows if (row["n"], row["b"]) == (n, b) and row["m"] >= b]
        if len(some) < 2:
            continue
        for kind in ("cached_ms", "cold_ms"):
            m, ms = (np.array([row[name] for row in some], float) for name in ("m", kind))
            (slope, intercept), *_ = np.linalg.lstsq(
                np.stack([m / ms, 1 / ms], 1), np.ones(len(m)), rcond=None
            )
            worst = float(np.abs((slope * m + intercept) / ms - 1).max())
            fit = {
                "n": n,
                "b": b,
                "kind": kind,
                "ms_per_candidate": slope,
                "intercept_ms": intercept,
            }
            fits.append({**fit, "worst_relative_error": worst})
    return fits


def draw(rows: list[dict], path: Path) -> None:
    """Time against m, one panel for each n, one line for each b and kind."""
    lengths = sorted({row["n"] for row in rows})
    size = (4 * len(lengths), 3.6)
    figure, panels = figures.pyplot().subplots(
        1, len(lengths), figsize=size, sharey=True, squeeze=False
    )
    for n, panel in zip(lengths, panels[0], strict=True):
        here = [row for row in rows if row["n"] == n]
        for number, b in enumerate(sorted({row["b"] for row in here})):
            some = [row for row in here if row["b"] == b]
            for kind, style in (("cached_ms", "-o"), ("cold_ms", "--s")):
                xs, ys = [row["m"] for row in some], [row[kind] for row in some]
                panel.plot(
                    xs, ys, style, color=f"C{number}", markersize=3, label=f"{kind[:-3]}, b={b}"
                )
        some = [row for row in here if row["b"] == here[0]["b"]]
        panel.plot(
            [row["m"] for row in some], [row["naive_ms"] for row in some], "k:", label="naive"
        )
        panel.set(xscale="log", yscale="log", title=f"history of {n} tokens", xlabel="candidates m")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("ms per request")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--out", type=Path, help="JSON file; the figure lies beside it")
    parser.add_argument("--n", type=int, nargs="*", help="histories, instead of all")
    parser.add_argument("--m", type=int, nargs="*", help="candidates, instead of all")
    parser.add_argument("--b", type=int, nargs="*", help="micro-batches, instead of all")
    args = parser.parse_args()
    sizes: dict[str, Any] = dict(QUICK if args.quick else FULL)
    sizes |= {name: tuple(given) for name in "nmb" if (given := getattr(args, name))}
    out = args.out or (ROOT / "runs/mfalcon/quick.json" if args.quick else RESULTS / "mfalcon.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    head = sizes["width"] // sizes["heads"]
    config = ModelConfig(
        width=sizes["width"],
        num_blocks=sizes["blocks"],
        num_heads=sizes["heads"],
        qk_width=head,
        v_width=head,
    )
    rate = flops_per_second()
    columns = ("cached ms", "cold ms", "naive ms", "floor ms", "x cached", "x cold")
    print(f"{'n':>6}{'b':>6}{'m':>7}" + "".join(f"{name:>12}" for name in columns) + "   error")
    rows, shared = [], []
    for n in sizes["n"]:
        more, about = measure(config, n, sizes, rate)
        rows, shared = rows + more, [*shared, about]
        text = ", ".join(f"{name} {value:.3f}" for name, value in about.items() if name != "n")
        print(
            f"n={n}: {text}; an append costs"
            f" {about['append_ms'] / about['encode_ms']:.2%} of an encode",
            flush=True,
        )
        result = {
            "command": command_line(),
            "model": {name: sizes[name] for name in ("width", "blocks", "heads")},
            "gflops_per_second_of_a_matmul": rate / 1e9,
            "rows": rows,
            "histories": shared,
            "fits_m_at_least_b": linear_fits(rows),
            "machine": {
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
                "device": jax.devices()[0].device_kind,
            },
            "versions": {
                "python": platform.python_version(),
                "jax": jax.__version__,
                "numpy": np.__version__,
            },
        }
        keep(out, result)
    print(f"written: {out}")
    draw(rows, out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
