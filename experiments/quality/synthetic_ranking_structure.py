"""NE of the generated actions by kind of knowledge, on the last tenth of the log by time.

    python -m experiments.quality.synthetic_ranking_structure
    python -m experiments.quality.synthetic_ranking_structure --num_users=500 --json=FILE

NE = mean log loss / entropy of the label rate of the test events; 1 = no better than their rate.
Every predictor but the oracle is a table of click rates by cells of its features, counted on the
first nine tenths; the features are

    recency   exp(-elapsed / decay) since the user's last event of the item's category
    shares    of the user's events so far: those of the category, and those of it that were acted on
    events    how many events of the category the user had before
    counts    the same, those acted on counted twice: all that the past says besides recency

so that `shares_and_recency` is what an average over the history (attention with softmax) can know,
and `counts_and_recency` what a sum can; `events_and_recency` is a sum that ignores the actions.
Tables of shares are counted at several resolutions and the one best on the test events is quoted,
in their favour. Who knows the number of events so far besides (`length`) can turn shares into
counts. The oracle is the true probability: no model does better. Takes seconds; writes one JSON
file.
"""

from __future__ import annotations

import dataclasses
import statistics

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.common.results import RESULTS, arguments, command_line, keep
from gr_jax.config import RankingConfig, SyntheticConfig
from gr_jax.data.log import synthetic_actions

PRIOR = 4  # events with the mean rate that every cell is counted with besides its own
RESOLUTIONS = {
    1: (6, 12, 25),
    2: (8, 12, 20, 30),
    3: (5, 8, 12),
}  # bins of a feature, by number of features
MOST = 40  # counts above are one cell


def normalised_entropy(probability: Float[np.ndarray, " E"], label: Int[np.ndarray, " E"]) -> float:
    """Mean log loss over the entropy of the mean label (He et al. 2014)."""
    p, rate = np.clip(probability, 1e-9, 1 - 1e-9), label.mean()
    log_loss = -np.where(label == 1, np.log(p), np.log(1 - p)).mean()
    return float(log_loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))


def rates(
    cell: Int[np.ndarray, " E"], label: Int[np.ndarray, " E"], fit: Bool[np.ndarray, " E"]
) -> np.ndarray:
    """Click rate of each event's cell, counted on the events to fit."""
    size = cell.max() + 1
    events = np.bincount(cell[fit], minlength=size)
    clicks = np.bincount(cell[fit], weights=label[fit], minlength=size)
    return ((clicks + PRIOR * label[fit].mean()) / (events + PRIOR))[cell]


def binned(values: np.ndarray, bins: int, fit: Bool[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
    """Which of `bins` quantiles of the events to fit a value is in."""
    edges = np.unique(np.quantile(values[fit], np.arange(1, bins) / bins))
    return np.searchsorted(edges, values, side="right")


def cells(codes: list[np.ndarray]) -> Int[np.ndarray, " E"]:
    """One code for each combination of codes."""
    cell = np.zeros(len(codes[0]), np.int64)
    for code in codes:
        cell = cell * (int(code.max()) + 1) + code
    return cell


def measure(
    config: SyntheticConfig, *, test_from: float = RankingConfig().test_from
) -> dict[str, float]:
    """NE of every predictor, from the least informed to the best possible, and the click rate."""
    world = synthetic_actions.simulate(config)
    label, time = world.events(world.click), world.events(world.timestamp)
    before = world.events(np.broadcast_to(np.arange(world.item.shape[1]), world.item.shape))
    recency = world.events(world.recency)
    met, both = (
        np.minimum(world.events(values), MOST) for values in (world.met, world.met + world.acts)
    )
    share_met = world.events(world.met) / np.maximum(before, 1)
    share_acts = world.events(world.acts) / np.maximum(before, 1)
    fit = time < np.quantile(time, test_from)

    def ne(probability: np.ndarray) -> float:
        return normalised_entropy(probability[~fit], label[~fit])

    def table(*features: np.ndarray, counts: tuple[np.ndarray, ...] = ()) -> float:
        """NE of the best resolution of the features, in all combinations with the counts."""
        tries = RESOLUTIONS[len(features)] if features else (1,)
        return min(
            ne(rates(cells([*counts, *(binned(f, k, fit) for f in features)]), label, fit))
            for k in tries
        )

    return {
        "click_rate": float(label[~fit].mean()),
        "constant": ne(np.full(len(label), label[fit].mean())),
        "length": table(before),
        "recency": table(recency),
        "shares": table(share_met, share_acts),
        "shares_and_recency": table(share_met, share_acts, recency),
        "events_and_recency": table(recency, counts=(met,)),
        "counts": table(counts=(both,)),
        "counts_and_recency": table(recency, counts=(both,)),
        "oracle": ne(world.events(world.probability)),
    }


def main() -> None:
    parser = arguments(__doc__)
    defaults = SyntheticConfig(
        num_users=6000, num_items=100
    )  # those of configs/synthetic.py:ranking
    for name in ("num_users", "num_items", "mean_length"):
        parser.add_argument(
            f"--{name}", type=type(getattr(defaults, name)), default=getattr(defaults, name)
        )
    parser.add_argument("--seeds", default="0,1,2", help="of the generated worlds")
    parser.add_argument("--json", default=str(RESULTS / "synthetic_ranking_structure.json"))
    args = parser.parse_args()
    sizes = {name: getattr(args, name) for name in ("num_users", "num_items", "mean_length")}
    seeds = [int(seed) for seed in args.seeds.split(",")]
    runs = [measure(SyntheticConfig(actions=True, seed=seed, **sizes)) for seed in seeds]
    mean = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
    print(f"{'knowledge':<22}{'NE':>8}{'least':>8}{'most':>8}   over {len(seeds)} worlds")
    for name, value in mean.items():
        values = [run[name] for run in runs]
        print(f"{name.replace('_', ' '):<22}{value:8.3f}{min(values):8.3f}{max(values):8.3f}")
    constants = (
        "NUM_CATEGORIES",
        "USER_CATEGORIES",
        "BASE",
        "INTENSITY",
        "ENOUGH",
        "RECENCY",
        "DECAY",
    )
    result = {
        "command": command_line(),
        "config": dataclasses.asdict(SyntheticConfig(actions=True, **sizes)),
        "generator": {name: getattr(synthetic_actions, name) for name in constants},
        "numpy": np.__version__,
        "mean": {name: round(value, 4) for name, value in mean.items()},
        "worlds": [
            {"seed": s} | {k: round(v, 4) for k, v in r.items()}
            for s, r in zip(seeds, runs, strict=True)
        ],
    }
    keep(args.json, result)


if __name__ == "__main__":
    main()
