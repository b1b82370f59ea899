"""Pointwise against softmax attention on the paper's streaming data (appendix C), smaller.

    # 3 models, 3 seeds, about 3 minutes a run on 2 CPU cores
    python -m experiments.quality.synthetic_intensity
    python -m experiments.quality.synthetic_intensity --seeds=0
    # some steps of each; no results are kept
    python -m experiments.quality.synthetic_intensity --quick

Records of 128 items, each a Dirichlet process: with probability alpha / (alpha + n - 1) item n is
of a category drawn from the record's prior over five categories, else of one that the record had
before, in proportion to how often; alpha is uniform in 1 to 500. Items are released over time: at
first 40 % of each category, the rest evenly until the last record, so models learn a vocabulary
that grows, in one pass in the order of records. The last tenth tests: rank of the true item among
the whole catalogue at every eighth position of the second half.

The paper has 1,000,000 records of 20,000 items in 100 categories, and does not give sizes, rates
and loss: here are 20,000 records of 4,000 items in 100 categories, models of equal width and depth,
the same loss and learning rate. It reports HR@10 / HR@50 of .0442 / .2025 (Transformer), .0617 /
.2496 (softmax HSTU) and .0893 / .3170 (HSTU), none with a relative bias. `oracle` knows categories,
prior, alpha and releases: nothing can be better on average.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from experiments.common.results import RESULTS, arguments, command_line, keep
from experiments.common.started import start
from gr_jax.config import Config, DataConfig, LossConfig, ModelConfig
from gr_jax.data.batches.batch import Batch
from gr_jax.training.retrieval import metrics

RESULT = RESULTS / "synthetic_intensity.json"
RECORDS, LENGTH, ITEMS, CATEGORIES, OF_A_RECORD = 20_000, 128, 4_000, 100, 5
FIRST_RELEASE, TRAIN = 0.4, 0.9
BATCH = 16  # records
TESTED = range(LENGTH // 2 - 1, LENGTH - 1, 8)  # positions whose next item is ranked
PAPER = {
    "transformer": (0.0442, 0.2025),
    "hstu_softmax": (0.0617, 0.2496),
    "hstu": (0.0893, 0.3170),
}
NARROW: dict[str, Any] = {"width": 64, "num_blocks": 2, "num_heads": 2, "bias": "none"}
MODELS = {
    "transformer": ModelConfig(kind="sasrec", ffn_width=4 * 64, **NARROW),
    "hstu_softmax": ModelConfig(kind="hstu_softmax", qk_width=32, v_width=32, **NARROW),
    "hstu": ModelConfig(kind="hstu", qk_width=32, v_width=32, **NARROW),
}


class World(NamedTuple):
    """Records in the order of time; `of_category[i]` are the items of category i by release."""

    item: Int[np.ndarray, "B N"]  # 1 to X
    category: Int[np.ndarray, "B N"]
    own: Int[np.ndarray, "B C"]  # categories of a record
    prior: Float[np.ndarray, "B C"]  # over these
    alpha: Float[np.ndarray, " B"]
    released: Int[np.ndarray, " B"]  # items of each category that a record can take
    of_category: Int[np.ndarray, "categories items"]


def generate(records: int, seed: int) -> World:
    """Draws all records."""
    rng = np.random.default_rng(seed)
    own = rng.permuted(np.tile(np.arange(CATEGORIES), (records, 1)), axis=1)[:, :OF_A_RECORD]
    prior = rng.dirichlet(np.ones(OF_A_RECORD), records)
    alpha = rng.uniform(1, 500, records)
    each = ITEMS // CATEGORIES
    of_category = rng.permutation(np.arange(1, ITEMS + 1)).reshape(CATEGORIES, each)
    share = FIRST_RELEASE + (1 - FIRST_RELEASE) * np.arange(records) / records
    released = np.floor(share * each).astype(np.int64)
    row, count = np.arange(records), np.zeros((records, OF_A_RECORD))
    choice = np.zeros((records, LENGTH), np.int64)
    for n in range(LENGTH):
        choice[:, n] = _draw(next_category(prior, alpha, count), rng)
        count[row, choice[:, n]] += 1
    category = own[row[:, None], choice]
    place = rng.integers(0, released[:, None], category.shape)
    return World(of_category[category, place], category, own, prior, alpha, released, of_category)


def next_category(
    prior: Float[np.ndarray, "B C"], alpha: Float[np.ndarray, " B"], count: Float[np.ndarray, "B C"]
) -> Float[np.ndarray, "B C"]:
    """Probabilities of the next item's category, by how often each was taken."""
    return (alpha[:, None] * prior + count) / (alpha[:, None] + count.sum(1, keepdims=True))


def _draw(probability: Float[np.ndarray, "B C"], rng: np.random.Generator) -> Int[np.ndarray, " B"]:
    return (
        (probability.cumsum(1) < rng.random(len(probability))[:, None])
        .sum(1)
        .clip(max=probability.shape[1] - 1)
    )


def oracle(world: World, records: slice) -> dict[str, float]:
    """HR@K of ranking the items by their true probabilities, ties in expectation."""
    count = np.zeros((len(world.item), OF_A_RECORD))
    hits: dict[str, list] = {"hr@10": [], "hr@50": []}
    row = np.arange(len(world.item))
    for n in range(LENGTH - 1):
        count[row, (world.own == world.category[:, n, None]).argmax(1)] += 1
        if n not in TESTED:
            continue
        # Items of a category are equally likely: the k best are those of the best categories, by
        # probability an item.
        each = next_category(world.prior, world.alpha, count)[records]
        size = world.released[records, None]
        best = -np.sort(-each, axis=1)
        for name, k in (("hr@10", 10), ("hr@50", 50)):
            before = size * np.arange(OF_A_RECORD)
            hits[name].append((best / size * np.clip(k - before, 0, size)).sum(1))
    return {name: float(np.mean(values)) for name, values in hits.items()}


def batch_of(item: Int[np.ndarray, "R N"]) -> Batch:
    """Records as rows, each token but the last labelled with the next item; there are no times."""
    rows: Any = item.astype(np.int32)
    position: Any = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), rows.shape)
    zeros, label = rows * 0, np.pad(rows[:, 1:], ((0, 0), (0, 1)))
    return Batch(rows, zeros, zeros, position, zeros + 1, label)  # pyright: ignore[reportArgumentType]


def train(world: World, model: ModelConfig, seed: int, steps: int) -> dict:
    """One pass over the records that train; hit rates on the others."""
    loss = LossConfig(kind="group", negatives=128, group=LENGTH)
    config = Config(
        data=DataConfig(max_length=LENGTH, row_length=LENGTH), model=model, loss=loss, seed=seed
    )
    training = start(config, ITEMS)
    begin, losses, key = time.perf_counter(), [], jax.random.key(seed)
    for number in range(steps):
        batch = batch_of(world.item[BATCH * number : BATCH * (number + 1)])
        training.state, values = training.step(training.state, batch, key)
        losses.append(values["loss"])
        if number % 200 == 199:
            recent = float(np.mean(losses[-200:]))
            print(
                f"step {number + 1} of {steps}  loss {recent:.4f}"
                f"  {time.perf_counter() - begin:.0f} s",
                flush=True,
            )
    params = training.state.params
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    tested = world.item[int(TRAIN * len(world.item)) :]
    seconds = time.perf_counter() - begin
    return hit_rates(params, training.graphdef, tested) | {"parameters": size, "seconds": seconds}


def hit_rates(
    params: dict, graphdef: nnx.GraphDef, item: Int[np.ndarray, "B N"]
) -> dict[str, float]:
    """Hit rates at the `TESTED` positions, the whole catalogue ranked."""
    places = np.array(TESTED)

    @jax.jit
    def ranks(params: dict, batch: Batch) -> jax.Array:
        queries = nnx.merge(graphdef, params).encode(batch)[:, places].reshape(-1, NARROW["width"])
        target = batch.item[:, places + 1].reshape(-1)
        return metrics.target_ranks(
            queries,
            params["embeddings"]["item_table"],
            target,
            target[:, None] * 0,
            num_items=ITEMS,
            temperature=1.0,
            chunk_items=4096,
        )["rank"]

    found = [
        np.asarray(ranks(params, batch_of(item[i : i + 100]))) for i in range(0, len(item), 100)
    ]
    return {f"hr@{k}": float(np.mean(np.concatenate(found) <= k)) for k in (10, 50)}


def table(runs: list[dict], best: dict[str, float]) -> str:
    """Means over seeds, and ratios to the softmax HSTU, here and in the paper."""
    lines = ["| model | seeds | HR@10 | HR@50 | over softmax HSTU | paper's |", "| --- " * 6 + "|"]
    means = {
        name: [
            statistics.mean(run[metric] for run in runs if run["model"] == name)
            for metric in ("hr@10", "hr@50")
        ]
        for name in MODELS
        if any(run["model"] == name for run in runs)
    }
    for name, (ten, fifty) in means.items():
        ratio = f"{ten / means['hstu_softmax'][0]:.3f}" if "hstu_softmax" in means else ""
        theirs = f"{PAPER[name][0] / PAPER['hstu_softmax'][0]:.3f}"
        seeds = sum(run["model"] == name for run in runs)
        lines.append(f"| {name} | {seeds} | {ten:.4f} | {fifty:.4f} | {ratio} | {theirs} |")
    lines.append(f"| oracle | | {best['hr@10']:.4f} | {best['hr@50']:.4f} | | |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", default="0,1,2", help="of data and models")
    parser.add_argument("--quick", action="store_true", help="some steps; no results are kept")
    args = parser.parse_args()
    records = 1_000 if args.quick else RECORDS
    found: dict = {"runs": [], "oracle": {}}
    if RESULT.exists() and not args.quick:
        found = json.loads(RESULT.read_text())
    for seed in [int(seed) for seed in args.seeds.split(",")][: 1 if args.quick else None]:
        world = generate(records, seed)
        best = oracle(world, slice(int(TRAIN * records), None))
        found["oracle"][str(seed)] = best
        for name, model in MODELS.items():
            if any(run["model"] == name and run["seed"] == seed for run in found["runs"]):
                continue
            run = train(world, model, seed, int(TRAIN * records) // BATCH)
            found["runs"].append({"model": name, "seed": seed} | run)
            print(table(found["runs"], best), flush=True)
            if not args.quick:
                made = {"command": command_line()}
                made |= {
                    "jax": jax.__version__,
                    "hardware": f"{os.cpu_count()} CPU cores, shared with other work",
                }
                made |= {
                    "records": RECORDS,
                    "items": ITEMS,
                    "length": LENGTH,
                    "batch": BATCH,
                    "paper": PAPER,
                }
                made |= {
                    "models": {name: dataclasses.asdict(model) for name, model in MODELS.items()}
                }
                keep(RESULT, made | found)


if __name__ == "__main__":
    main()
