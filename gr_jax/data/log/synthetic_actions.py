"""A generated log whose users act on events by how often and how recently they did before.

Items belong to categories; a user has a few of them and meets one at each event, minutes or days
after the last. Whether the user then acts on it ("click") is a coin with

    log-odds = BASE + INTENSITY * min((met + acts) / 2, ENOUGH) / ENOUGH + RECENCY * exp(-elapsed /
    DECAY)

where `met` is how many events of this category the user had before, `acts` how many of them were
acted on, and `elapsed` the time since the last of them. Intensity is a count, not a share: one
event in two and ten in twenty are the same share. Attention with softmax averages over the history
and sees shares, pointwise attention adds up and sees counts (Zhai et al. 2024, section 3.1). What
each kind of knowledge can reach is measured by
`experiments/quality/synthetic_ranking_structure.py`.

The category of an item shows in nothing but what users do. Users begin at times spread over a
year, at the end of which the log stops: it looks the same at any time but the first weeks, so that
a split by time is fair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from gr_jax.config import ConfigError, SyntheticConfig
from gr_jax.data.log.synthetic import DAY, START, gaps, lengths

NUM_CATEGORIES = 20
USER_CATEGORIES = (2, 8)  # fewest and most that a user meets, each as often
# Of the log, with the users' first events all over it: far more than a history lasts.
SPAN = 365 * DAY
BASE = -4.0  # log-odds of acting on a category never met
# Log-odds added by ENOUGH events all acted on; more of them add nothing.
INTENSITY, ENOUGH = 8.0, 8
# Log-odds added by an event of the category just now, and seconds until 1/e of it.
RECENCY, DECAY = 3.0, 6 * 3600


@dataclass(frozen=True)
class World:
    """A generated log with its hidden state: columns from `length` on are not in the log."""

    item: Int[np.ndarray, "B N"]  # item id, from 1
    category: Int[np.ndarray, "B N"]  # of the item, from 0
    timestamp: Int[np.ndarray, "B N"]  # unix seconds, strictly increasing
    length: Int[np.ndarray, " B"]  # events of each user
    acts: Int[np.ndarray, "B N"]  # earlier events of the category that the user acted on
    met: Int[np.ndarray, "B N"]  # earlier events of the category
    recency: Float[np.ndarray, "B N"]  # exp(-elapsed / DECAY), 0 if the category is new
    probability: Float[np.ndarray, "B N"]  # of acting
    click: Int[np.ndarray, "B N"]  # 1 = the user acted

    def events(self, values: np.ndarray) -> np.ndarray:
        """`values` [B, N] of the real events, in the order of the log."""
        return values[np.arange(values.shape[1]) < self.length[:, None]]


def probability(
    met: Int[np.ndarray, "*B"], acts: Int[np.ndarray, "*B"], recency: Float[np.ndarray, "*B"]
) -> Float[np.ndarray, "*B"]:
    """Probability of acting, by events and acts of the category and exp(-elapsed / DECAY)."""
    intensity = np.minimum((met + acts) / 2, ENOUGH) / ENOUGH
    return 1 / (1 + np.exp(-(BASE + INTENSITY * intensity + RECENCY * recency)))


def simulate(config: SyntheticConfig) -> World:
    """Generates the log step by step, all users at once; a pure function of `config`.

    Raises:
      ConfigError: fewer items than categories.
    """
    if config.num_items < NUM_CATEGORIES:
        remedy = f"must be at least {NUM_CATEGORIES}, one for each category"
        raise ConfigError(f"data.synthetic.num_items={config.num_items}: {remedy}")
    rng = np.random.default_rng(config.seed)
    users, everyone = config.num_users, np.arange(config.num_users)
    length = lengths(config, rng)
    shape = users, int(length.max())
    # Item ids[k] is of category k % NUM_CATEGORIES: an id says nothing about its category.
    ids = 1 + rng.permutation(config.num_items)
    own = rng.random((users, NUM_CATEGORIES)).argsort(axis=1)  # the first few are the user's
    few, many = USER_CATEGORIES
    how_many = rng.integers(few, many + 1, size=(users, 1))
    category = np.take_along_axis(own, (rng.random(shape) * how_many).astype(np.int64), axis=1)
    items_of_category = -(-(config.num_items - category) // NUM_CATEGORIES)
    item = ids[category + NUM_CATEGORIES * (rng.random(shape) * items_of_category).astype(np.int64)]

    now = START + rng.integers(SPAN, size=users)
    acted, seen = (np.zeros((users, NUM_CATEGORIES), np.int64) for _ in range(2))
    # Time of the user's last event of the category.
    last = np.full((users, NUM_CATEGORIES), -np.inf)
    timestamp, acts, met, click = (np.zeros(shape, np.int64) for _ in range(4))
    recency, chance = np.zeros(shape), np.zeros(shape)
    for step in range(shape[1]):
        if step > 0:
            now = now + gaps(users, rng)[1]
        place = everyone, category[:, step]
        timestamp[:, step], acts[:, step], met[:, step] = now, acted[place], seen[place]
        recency[:, step] = np.exp((last[place] - now) / DECAY)
        chance[:, step] = probability(met[:, step], acts[:, step], recency[:, step])
        click[:, step] = rng.random(users) < chance[:, step]
        acted[place] += click[:, step]
        seen[place] += 1
        last[place] = now
    length = np.minimum(length, (timestamp < START + SPAN).sum(axis=1))
    return World(item, category, timestamp, length, acts, met, recency, chance, click)


def generate(config: SyntheticConfig) -> pl.DataFrame:
    """The log by user and time: user and item (from 1), timestamp (unix seconds), click (0, 1).

    Raises:
      ConfigError: fewer items than categories.
    """
    world = simulate(config)
    return pl.DataFrame(
        {
            "user": np.repeat(np.arange(1, len(world.length) + 1), world.length),
            "item": world.events(world.item),
            "timestamp": world.events(world.timestamp),
            "click": world.events(world.click),
        }
    )
