"""HR@10 on the generated log by kind of knowledge, on the last event of every user.

    python -m experiments.quality.synthetic_structure
    python -m experiments.quality.synthetic_structure --num_users=500 --json=FILE

Popularity and the Markov chains are fitted on all but the last two events of each user. The two
`best` rankings know the generator and where each user stands, without and with the time of the
request: no model can do better. Takes seconds.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.common.results import RESULTS, arguments, command_line, keep
from gr_jax.config import SyntheticConfig
from gr_jax.data.log.synthetic import World, ceilings, simulate

RESULT = RESULTS / "synthetic_structure.json"
TOP = 10
HELD_OUT = 2  # events at the end of each user's log that nothing is fitted on


def transition_counts(
    world: World, keep: Bool[np.ndarray, "B M"], num_items: int
) -> Float[np.ndarray, "rows rows"]:
    """How often item b follows item a, over the steps to keep; row and column 0 are unused."""
    a, b = world.item[:, :-1][keep], world.item[:, 1:][keep]
    flat = np.bincount(a * (num_items + 1) + b, minlength=(num_items + 1) ** 2)
    return flat.reshape(num_items + 1, num_items + 1).astype(float)


def hit_rate(scores: Float[np.ndarray, "B rows"], world: World) -> float:
    """HR@10 of the last events by `scores` (column = item id), seen items left out.

    A tie counts as a miss.
    """
    everyone, last = np.arange(len(scores)), world.length - 1
    target = world.item[everyone, last]
    own = scores[everyone, target][:, None]
    seen = np.where(np.arange(world.item.shape[1]) < last[:, None], world.item, 0)
    scores = scores.copy()
    scores[everyone[:, None], seen] = -np.inf
    scores[:, 0] = -np.inf
    scores[everyone, target] = own[:, 0]
    return float(((scores >= own).sum(axis=1) <= TOP).mean())


def markov(world: World, num_items: int, *, gap: Int[np.ndarray, "B N"] | None = None) -> float:
    """HR@10 of the first-order chain, counted apart for each class of gap."""
    everyone, last = np.arange(len(world.length)), world.length - 1
    fitted = np.arange(1, world.item.shape[1]) < (world.length - HELD_OUT)[:, None]
    gap = np.zeros_like(world.item) if gap is None else gap
    query_gap = gap[everyone, last]
    scores = np.zeros((len(world.length), num_items + 1))
    for kind in np.unique(query_gap):
        counts = transition_counts(world, fitted & (gap[:, 1:] == kind), num_items)
        asked = query_gap == kind
        scores[asked] = counts[world.item[everyone, last - 1][asked]]
    popular = np.bincount(world.item[:, 1:][fitted], minlength=num_items + 1)
    return hit_rate(
        scores + popular / (popular.sum() + 1), world
    )  # popularity decides between equal counts


def popularity(world: World, num_items: int) -> float:
    """HR@10 of ranking by training count."""
    fitted = np.arange(world.item.shape[1]) < (world.length - HELD_OUT)[:, None]
    counts = np.bincount(world.item[fitted], minlength=num_items + 1).astype(float)
    return hit_rate(np.tile(counts, (len(world.length), 1)), world)


def days_since_previous(world: World) -> Int[np.ndarray, "B N"]:
    """Gap before each event in days, rounded: the class of elapsed time."""
    return np.rint(
        np.diff(world.timestamp, axis=1, prepend=world.timestamp[:, :1]) / 86_400
    ).astype(np.int64)


def measure(config: SyntheticConfig) -> dict[str, float]:
    """HR@10 of every ranking, from the least informed to the best possible."""
    world = simulate(config)
    best = ceilings(world, top=TOP)
    return {
        "popularity": popularity(world, config.num_items),
        "markov_last_item": markov(world, config.num_items),
        "markov_last_item_and_gap": markov(world, config.num_items, gap=days_since_previous(world)),
        "best_without_time": best["order"],
        "best_with_time": best["order_and_time"],
    }


def main() -> None:
    parser = arguments(__doc__)
    for field in dataclasses.fields(SyntheticConfig):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--json", default=str(RESULT), help="file for the result")
    args = vars(parser.parse_args())
    file = Path(args.pop("json"))
    config = SyntheticConfig(**args)
    measured = measure(config)
    print(f"{'ranking':<26}HR@{TOP}")
    for name, value in measured.items():
        print(f"{name.replace('_', ' '):<26}{value:.3f}")
    command = command_line()
    result = {"command": command, "config": dataclasses.asdict(config), f"hr@{TOP}": measured}
    keep(file, result)


if __name__ == "__main__":
    main()
