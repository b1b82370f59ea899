"""A generated log whose next item depends on order and on elapsed time.

The catalogue is cut into topics, each a ring of shelves, each shelf a dozen interchangeable items.
A user alternates between two topics day by day and walks each ring shelf by shelf: minutes after
an event the next shelf of today's topic is due, a day later the *other* topic goes on where it was
left, two days later the same one again. An item is never taken twice.

The last item shows the shelf of today's topic, older items that of the other, and only the time of
the request shows which of the two is due. So a ranking by popularity finds little, a model
of the order alone must guess the topic, and a model that weighs history by the time elapsed until
the request can find every item that is not noise (`ceilings`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from gr_jax.config import ConfigError, SyntheticConfig

# Items of a shelf, equally likely: about ten are left to take, so that two shelves do not fit into
# a top 10.
SHELF_ITEMS = 12
# Shelves of a topic's ring: long enough that the next shelf is rarely one the user half emptied.
TOPIC_SHELVES = 8
TOPIC_ITEMS = SHELF_ITEMS * TOPIC_SHELVES
# The next event follows in minutes, else in days. Sessions are geometric: order does not show
# their end.
P_SAME_DAY = 0.42
# Gaps in days that are of two days: then the same topic is due 54 % of the time, the other 46 %.
P_SKIP_DAY = 0.2
# Events that are a popular item of the whole catalogue and move nothing: an unpredictable
# part.
P_NOISE = 0.08
TOPIC_ZIPF = 0.5  # exponent of topic popularity: mild, as popularity alone must not find much
NOISE_ZIPF = 1.0  # exponent of item popularity among noise, the usual one
SESSION_GAP = (30, 30 * 60)  # seconds between events of a day, log-uniform
DAY = 24 * 3600
# Seconds around whole days: a habit has its hour, and 1, 2, 3, 4 elapsed days stay in separate
# time buckets.
DAY_JITTER = 2 * 3600
START, START_SPREAD = 1_600_000_000, 60 * DAY  # first events, unix seconds; users out of step
LENGTH_SIGMA = 0.5  # of log-normal history lengths, between these bounds
MIN_LENGTH, MAX_LENGTH_RATIO = 5, 3  # events; times the mean
MAX_LENGTH = int(1.25 * TOPIC_ITEMS)  # events, of two topics: shelves would run empty above


@dataclass(frozen=True)
class World:
    """A generated log with its hidden state: columns from `length` on are not in the log."""

    item: Int[np.ndarray, "B N"]  # item id, from 1
    timestamp: Int[np.ndarray, "B N"]  # unix seconds, strictly increasing
    length: Int[np.ndarray, " B"]  # events of each user
    due: Int[np.ndarray, "B N"]  # shelf that order and time say the event comes from
    other: Int[np.ndarray, "B N"]  # shelf that would have been due under the other topic
    same_topic: Bool[np.ndarray, "B N"]  # the due topic is that of the event before
    shelves: Int[np.ndarray, "shelves items"]  # item ids of each shelf


def _zipf(count: int, exponent: float) -> Float[np.ndarray, " count"]:
    weight = np.arange(1, count + 1) ** -exponent
    return weight / weight.sum()


def lengths(config: SyntheticConfig, rng: np.random.Generator) -> Int[np.ndarray, " B"]:
    """Log-normal lengths of the users' histories, in events."""
    median = np.log(config.mean_length) - LENGTH_SIGMA**2 / 2
    longest = round(MAX_LENGTH_RATIO * config.mean_length)
    return np.clip(
        rng.lognormal(median, LENGTH_SIGMA, config.num_users).round(), MIN_LENGTH, longest
    ).astype(np.int64)


def _user_topics(
    config: SyntheticConfig, num_topics: int, rng: np.random.Generator
) -> Int[np.ndarray, "B 2"]:
    """Two different topics a user, drawn by popularity (top two of Gumbel-perturbed weights)."""
    score = np.log(_zipf(num_topics, TOPIC_ZIPF)) + rng.gumbel(size=(config.num_users, num_topics))
    return np.argsort(-score, axis=1)[:, :2]


def gaps(
    count: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """Days (0 = same session) and seconds until the next event."""
    days = np.where(rng.random(count) < P_SAME_DAY, 0, 1 + (rng.random(count) < P_SKIP_DAY))
    short = np.exp(rng.uniform(math.log(SESSION_GAP[0]), math.log(SESSION_GAP[1]), count))
    long = days * DAY + rng.uniform(-DAY_JITTER, DAY_JITTER, count)
    return days, np.where(days == 0, short, long).astype(np.int64)


def _unseen(
    candidates: Int[np.ndarray, "B M"], history: Int[np.ndarray, "B N"]
) -> Bool[np.ndarray, "B M"]:
    """Which candidates are not in the user's history; column by column, to need no [B, M, N]."""
    return np.stack([(history != column[:, None]).all(axis=1) for column in candidates.T], axis=1)


def _first_unseen(
    candidates: Int[np.ndarray, "B M"], history: Int[np.ndarray, "B N"]
) -> tuple[Int[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
    """The first candidate that is not in the history, True; else the first candidate, False."""
    unseen = _unseen(candidates, history)
    everyone, choice = np.arange(len(candidates)), unseen.argmax(axis=1)
    return candidates[everyone, choice], unseen[everyone, choice]


def simulate(config: SyntheticConfig) -> World:
    """Generates the log step by step, all users at once; a pure function of `config`.

    Raises:
      ConfigError: fewer than two topics of items, or a mean length beyond what two topics hold.
    """
    _check(config)
    rng = np.random.default_rng(config.seed)
    users, everyone = config.num_users, np.arange(config.num_users)
    num_topics = config.num_items // TOPIC_ITEMS
    ids = 1 + rng.permutation(config.num_items)  # the id of an item says nothing about its shelf
    # Items left over only occur as noise.
    shelves = ids[: num_topics * TOPIC_ITEMS].reshape(-1, SHELF_ITEMS)
    popular = rng.permutation(ids)
    noise_cdf = np.cumsum(_zipf(config.num_items, NOISE_ZIPF))
    length = np.minimum(lengths(config, rng), MAX_LENGTH)
    topic = _user_topics(config, num_topics, rng)
    place = rng.integers(TOPIC_SHELVES, size=(users, 2))
    active = np.zeros(users, np.int64)  # which of the two topics is today's
    now = START + rng.integers(START_SPREAD, size=users)
    item, timestamp, due, other = (np.zeros((users, length.max()), np.int64) for _ in range(4))
    same_topic = np.zeros(item.shape, bool)

    for step in range(item.shape[1]):
        if step > 0:
            days, seconds = gaps(users, rng)
            now, active = now + seconds, active ^ (days & 1)
            same_topic[:, step] = days != 1
        shelf = topic * TOPIC_SHELVES + place
        due[:, step], other[:, step] = shelf[everyone, active], shelf[everyone, 1 - active]
        order = rng.random((users, SHELF_ITEMS)).argsort(axis=1)
        chosen, some_left = _first_unseen(shelves[due[:, step, None], order], item[:, :step])
        draws = np.minimum(np.searchsorted(noise_cdf, rng.random((users, 4))), config.num_items - 1)
        stray, _ = _first_unseen(popular[draws], item[:, :step])
        noise = (rng.random(users) < P_NOISE) | ~some_left
        item[:, step], timestamp[:, step] = np.where(noise, stray, chosen), now
        place[everyone, active] = (place[everyone, active] + ~noise) % TOPIC_SHELVES
    return World(item, timestamp, length, due, other, same_topic, shelves)


def _check(config: SyntheticConfig) -> None:
    if config.num_items < 2 * TOPIC_ITEMS:
        raise ConfigError(
            f"data.synthetic.num_items={config.num_items}: must be at least {2 * TOPIC_ITEMS}, two"
            " topics of items"
        )
    if config.mean_length > MAX_LENGTH:
        raise ConfigError(
            f"data.synthetic.mean_length={config.mean_length}: must be at most {MAX_LENGTH}, "
            "as no user takes an item twice and two topics hold no more"
        )


def generate(config: SyntheticConfig) -> pl.DataFrame:
    """The log by user and time: int64 user (from 1), item (from 1), timestamp (unix seconds).

    Raises:
      ConfigError: sizes that leave no room for the structure.
    """
    world = simulate(config)
    real = np.arange(world.item.shape[1]) < world.length[:, None]
    return pl.DataFrame(
        {
            "user": np.repeat(np.arange(1, config.num_users + 1), world.length),
            "item": world.item[real],
            "timestamp": world.timestamp[real],
        }
    )


def _hit_rate(
    tiers: list[Int[np.ndarray, "B _"]],
    history: Int[np.ndarray, "B N"],
    target: Int[np.ndarray, " B"],
    top: int,
) -> float:
    """Expected HR@top of ranking unseen items tier after tier, in random order within each."""
    slots, hits = np.full(len(target), top), np.zeros(len(target))
    for tier in tiers:
        unseen = _unseen(tier, history)
        count = unseen.sum(axis=1)
        found = ((tier == target[:, None]) & unseen).any(axis=1)
        hits += found * np.minimum(1, slots / np.maximum(count, 1))
        slots = np.maximum(slots - count, 0)
    return float(hits.mean())


def ceilings(world: World, *, top: int = 10) -> dict[str, float]:
    """HR@top on last events of the best rankings possible, without and with the request's time.

    Both know the world and where the user stands in both topics; items already taken are not
    ranked. `order` ranks the shelf of the topic of the event before (more often due), then that of
    the other; `order_and_time` knows which of the two is due.
    """
    everyone, last = np.arange(len(world.length)), world.length - 1
    target = world.item[everyone, last]
    history = np.where(np.arange(world.item.shape[1]) < last[:, None], world.item, 0)
    due, other = (
        world.shelves[world.due[everyone, last]],
        world.shelves[world.other[everyone, last]],
    )
    same = world.same_topic[everyone, last][:, None]
    likely, unlikely = np.where(same, due, other), np.where(same, other, due)
    return {
        "order": _hit_rate([likely, unlikely], history, target, top),
        "order_and_time": _hit_rate([due, other], history, target, top),
    }
