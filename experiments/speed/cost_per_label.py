"""Cost of a label: a label at every event against a sequence for each label, the same encoder.

    python -m experiments.speed.cost_per_label  # n = 64 to 1024, 9 minutes on 2 busy cores
    python -m experiments.speed.cost_per_label --plot_only        # the figure again, from the JSON

A user has n events and n labels. Generative training reads the n events once, with a label at each.
Training on impressions reads, for each label, the events up to it: n sequences of 1 to n events
with one label each. The encoder (two HSTU blocks, ranking head, BCE), the labels and what each of
them may see are the same, so the ratio of the cost per label is what reading the history once
saves: between n/2 (where the cost of a sequence is linear in its length) and n/3 (where it is
quadratic). Zhai et al. 2024, section 2.3.

Per label are given
  formula   FLOPs by `gr_jax.models.flops.train_flops`, causal pairs, over all n prefixes;
  xla       FLOPs counted by XLA's cost analysis of the compiled loss and gradient, attention
            `reference` (dense: no loops, whose bodies it would count once), over the sampled
            prefixes;
  wall      seconds of the compiled loss and gradient with the attention that trains here, over the
            sampled prefixes;
  cpu       the same in seconds of all cores: what other programs on the machine disturb least.
On CPU the attention works in chunks of 64 tokens, so that prefixes below 64 cost as much as 64.

Sampled: not all n prefixes, but `--prefixes` lengths, the middles of equal parts of 1 to n (4 of
them put the quadratic cost 1.6 % too low, the linear one right). A step holds the sequences of one
length that fit into `--tokens` tokens, without padding. Steps of both kinds take turns in every
round, so that a slow spell of the machine meets both; the median over the rounds counts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from experiments.common import figures
from experiments.common.results import RESULTS, arguments, command_line, keep
from gr_jax.config import Config, ModelConfig
from gr_jax.data.batches.batch import Batch
from gr_jax.models.flops import train_flops
from gr_jax.models.recommender import functional

NUM_ITEMS = 1000
MODEL = ModelConfig(
    width=32, num_blocks=2, qk_width=32, v_width=32, head_width=32, input_dropout=0.0, dropout=0.0
)


def make_step(max_length: int, attention: str, *, last_only: bool) -> tuple[Callable, dict]:
    """Loss and gradient of a batch, labels at every event or the last of a row, and parameters."""
    config = dataclasses.replace(MODEL, attention=attention)
    graphdef, init = functional(config, num_items=NUM_ITEMS, max_length=max_length, num_tasks=1)

    def loss(params: dict, batch: Batch, label: Float[Array, "R L"]) -> Float[Array, ""]:
        model: Any = nnx.merge(graphdef, params)
        logits = model.rank(batch)[..., 0]
        if last_only:
            logits, label = logits[:, -1], label[:, -1]
        return (jax.nn.softplus(logits) - label * logits).mean()

    return jax.jit(jax.value_and_grad(loss)), init(jax.random.key(0))


def inputs(rows: int, length: int) -> tuple[Batch, Float[Array, "R L"]]:
    """A batch on the device, one sequence of random events in each row, and its labels."""
    rng, shape = np.random.default_rng(length), (rows, length)
    time = jnp.asarray(np.cumsum(rng.integers(1, 10_000, shape), axis=1), jnp.int32)
    batch = Batch(
        item=jnp.asarray(rng.integers(1, NUM_ITEMS + 1, shape), jnp.int32),
        time=time,
        query_time=time,
        position=jnp.tile(jnp.arange(length), (rows, 1)),
        segment=jnp.ones(shape, jnp.int32),
    )
    return batch, jnp.asarray(rng.integers(0, 2, shape), jnp.float32)


def xla_flops(max_length: int, length: int, *, last_only: bool) -> float:
    """FLOPs that XLA counts for one sequence of this length, dense attention."""
    step, params = make_step(max_length, "reference", last_only=last_only)
    cost = step.lower(params, *inputs(1, length)).compile().cost_analysis()
    return float(cost["flops"])


def formula_flops(lengths: Int[np.ndarray, " B"]) -> float:
    """FLOPs of the encoder by the formula, for all sequences together."""
    return train_flops(Config(model=MODEL), lengths, num_items=0)


def prefix_lengths(n: int, count: int) -> list[int]:
    """The middles of `count` equal parts of the lengths 1 to n."""
    return [round((i + 0.5) * n / count + 0.5) for i in range(count)]


class Timer:
    """Compiled steps of one shape, and their wall and CPU seconds per sequence."""

    def __init__(self, max_length: int, length: int, tokens: int, *, last_only: bool):
        self.rows = max(1, tokens // length)
        self.step, self.params = make_step(max_length, "", last_only=last_only)
        self.inputs = inputs(self.rows, length)
        self.wall: list[float] = []
        self.cpu: list[float] = []
        jax.block_until_ready(self.step(self.params, *self.inputs))

    def run(self) -> None:
        """One timed step."""
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(self.step(self.params, *self.inputs))
        self.wall.append((time.perf_counter() - wall) / self.rows)
        self.cpu.append((time.process_time() - cpu) / self.rows)


def measure(n: int, *, prefixes: int, tokens: int, rounds: int) -> dict:
    """Cost per label of both kinds of training at histories of n events, and the ratios."""
    lengths = prefix_lengths(n, prefixes)
    whole = Timer(n, n, tokens, last_only=False)
    parts = [Timer(n, length, tokens, last_only=True) for length in lengths]
    for _ in range(rounds):
        for timer in (whole, *parts):
            timer.run()
    generative = {
        "formula": formula_flops(np.array([n])) / n,
        "xla": xla_flops(n, n, last_only=False) / n,
        "wall": statistics.median(whole.wall) / n,
        "cpu": statistics.median(whole.cpu) / n,
    }
    impression = {
        "formula": formula_flops(np.arange(1, n + 1)) / n,
        "xla": statistics.mean(xla_flops(n, length, last_only=True) for length in lengths),
        "wall": statistics.mean(statistics.median(part.wall) for part in parts),
        "cpu": statistics.mean(statistics.median(part.cpu) for part in parts),
    }
    of_a_round = np.mean([part.cpu for part in parts], axis=0) / (np.array(whole.cpu) / n)
    return {
        "n": n,
        "prefix_lengths": lengths,
        "generative": generative,
        "impression": impression,
        "ratio": {name: impression[name] / generative[name] for name in generative},
        "cpu_ratio_of_a_round": [float(of_a_round.min()), float(of_a_round.max())],
    }


def plot(cases: list[dict], path: Path) -> None:
    """The ratios against n, with n/2 and n/3."""
    n = np.array([case["n"] for case in cases])
    figure, (left, right) = figures.pyplot().subplots(1, 2, figsize=(10, 4.2))
    left.fill_between(n, n / 3, n / 2, color="0.9", label="n/3 to n/2")
    names = {
        "formula": "FLOPs, formula",
        "xla": "FLOPs, XLA",
        "wall": "wall time",
        "cpu": "CPU time",
    }
    for (name, label), mark in zip(names.items(), "so^v", strict=True):
        left.plot(n, [case["ratio"][name] for case in cases], marker=mark, label=label)
    left.set_ylabel("cost of a label: impressions / generative")
    for kind, style in (("impression", "--"), ("generative", "-")):
        right.plot(
            n, [1e3 * case[kind]["cpu"] for case in cases], f"k{style}", marker="v", label=kind
        )
    right.set_ylabel("CPU time of a label, ms")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2 if axis is left else 10)
        axis.set_xticks(n, [str(x) for x in n])
        axis.set_xlabel("events of a history, n")
        axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    left.set_title("A label at every event, or a sequence for each label", fontsize="medium")
    right.set_title(
        f"{MODEL.num_blocks} HSTU blocks of width {MODEL.width}, loss and gradient",
        fontsize="medium",
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--n", default="64,128,256,512,1024")
    parser.add_argument("--prefixes", type=int, default=4, help="sampled prefix lengths for each n")
    parser.add_argument("--tokens", type=int, default=2048, help="of a step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, default=RESULTS / "cost_per_label.json")
    parser.add_argument(
        "--plot_only", action="store_true", help="draw the figure of an existing JSON file"
    )
    args = parser.parse_args()
    if not args.plot_only:
        cases = []
        for n in map(int, args.n.split(",")):
            cases.append(measure(n, prefixes=args.prefixes, tokens=args.tokens, rounds=args.rounds))
            ratio = cases[-1]["ratio"]
            print(
                f"n {n:5}  " + "  ".join(f"{name} {value:.1f}" for name, value in ratio.items()),
                flush=True,
            )
        sizes = np.log([case["n"] for case in cases])
        slopes = {
            x: np.polyfit(sizes, np.log([c["ratio"][x] for c in cases]), 1)[0]
            for x in cases[0]["ratio"]
        }
        result = {
            "command": command_line(),
            "machine": f"{os.cpu_count()} CPU cores, load average {os.getloadavg()[1]:.1f}"
            " over the last 5 minutes",
            "versions": {"jax": jax.__version__, "numpy": np.__version__},
            "model": dataclasses.asdict(MODEL),
            "exponent_of_n_in_the_ratio": {
                name: round(float(slope), 3) for name, slope in slopes.items()
            },
            "cases": cases,
        }
        keep(args.json, result)
    plot(json.loads(args.json.read_text())["cases"], args.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
