"""The inside of a trained model for the report: its bias tables, and samples of recommendations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from gr_jax.data.dataset import Dataset
from gr_jax.serving.answer import Item
from gr_jax.serving.load import trained_model
from gr_jax.serving.model import TrainedModel
from gr_jax.training.run import open_trained
from pallas_kernels.bucket_ranges import bucket_limits

SHOWN_PAST, SHOWN_ITEMS = 6, 8  # events and recommendations of a sample
CANDIDATES = 200  # popular items that a ranking model orders for a sample, to be quick


@dataclass(frozen=True)
class Bias:
    """The tables of a relative attention bias, of all blocks."""

    position: Float[np.ndarray, "blocks N"] | None  # by distance in tokens
    # of the buckets that times of this log fall into
    time: Float[np.ndarray, "blocks buckets"] | None
    seconds: Int[np.ndarray, " buckets"]  # where each of them starts


@dataclass(frozen=True)
class Sample:
    """One user: the last events, the next one, and the recommendations for that moment."""

    user: str  # raw id
    events: int  # before the one to predict
    past: tuple[tuple[str, str], ...]  # time, item; the newest last
    came: str  # the item that came next
    outcome: str  # ranking: predicted and actual actions of it; else ""
    head: tuple[str, ...]  # names of the numbers of a recommendation
    items: tuple[tuple[str, ...], ...]  # title, numbers; best first
    hit: int  # which of them came next; -1 = none


@dataclass(frozen=True)
class Learned:
    """All that the report shows of a checkpoint."""

    parameters: int
    bias: Bias
    samples: tuple[Sample, ...]


def load(workdir: Path) -> Learned:
    """Read the best checkpoint of a run.

    Raises:
      ConfigError: it has none yet, or the log is not there.
    """
    run, params = open_trained(workdir, one_device=True)
    # Of the trained state: the item table of `params` has an entry for each item, whatever the
    # vocabulary.
    size = sum(a.size for a in jax.tree.leaves(run.planned_state().params))
    span = run.dataset.meta["time_max"] - run.dataset.meta["time_min"]
    model = trained_model(run, params)
    samples = tuple(_sample(model, user) for user in typical_users(run.dataset))
    return Learned(size, bias_of(params, span), samples)


def bias_of(params: dict[str, Any], span: int) -> Bias:
    """The bias tables among `params`; `span`: max seconds between two events of the log."""
    blocks = params.get("blocks", {})
    tables = [blocks[i].get("bias", {}) for i in sorted(blocks)]
    position, time = (
        np.stack([np.asarray(table[name], np.float32) for table in tables])
        if tables and name in tables[0]
        else None
        for name in ("position", "time")
    )
    seconds = np.zeros(0, np.int64)
    if time is not None:
        limits = np.asarray(bucket_limits(time.shape[1]), np.int64)
        first = np.maximum(limits[:, 0], 0)
        # no whole second falls into some of the first buckets
        used = (first <= limits[:, 1]) & (first <= span)
        time, seconds = time[:, used], first[used]
    return Bias(position, time, seconds)


def typical_users(dataset: Dataset, quantiles: Sequence[float] = (0.25, 0.5, 0.75)) -> list[int]:
    """Users with a short, a middling and a long history, the same for every run on this log."""
    lengths = dataset.events.lengths
    users = np.flatnonzero(lengths >= 3)
    if not len(users):
        return []
    by_length = users[np.argsort(lengths[users], kind="stable")]
    found = (int(by_length[int(q * (len(users) - 1))]) for q in quantiles)
    return list(dict.fromkeys(found))


def _sample(model: TrainedModel, user: int) -> Sample:
    dataset = model.dataset
    raw = dataset.catalogue.raw_users(np.array([user]))[0]
    *past, came = model.history(raw)

    outcome, head, options = "", ("score",), {}
    if model.tasks:
        popular = np.argsort(-model.popularity[1:], kind="stable")[:CANDIDATES] + 1
        options["allow"] = [*dataset.catalogue.raw_items(popular), came.item]
        head = model.tasks
        (predicted,) = model.score(past, [came.item], at_time=came.time, user=raw)
        happened = ", ".join(came.action) or "none of the actions"
        outcome = f"predicted {_numbers(predicted, model.tasks)}; happened: {happened}"
    answer = model.recommend(past, SHOWN_ITEMS, at_time=came.time, user=raw, **options)

    rows = tuple((_title(item), *_cells(item)) for item in answer)
    hit = next((place for place, item in enumerate(answer) if item.item == came.item), -1)
    last = past[-SHOWN_PAST:]
    *names, next_name = _titles(dataset, [event.item for event in [*last, came]])
    shown = tuple((_minute(event.time), name) for event, name in zip(last, names, strict=True))
    return Sample(raw, len(past), shown, next_name, outcome, head, rows, hit)


def _minute(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _titles(dataset: Dataset, raw: Sequence[str]) -> list[str]:
    titles = dataset.catalogue.titles(dataset.catalogue.item_ids(raw))
    return [title or item for title, item in zip(titles, raw, strict=True)]


def _title(item: Item) -> str:
    return item.title or item.item


def _cells(item: Item) -> tuple[str, ...]:
    return tuple(f"{value:.3f}" for value in (item.tasks or {"score": item.score}).values())


def _numbers(item: Item, tasks: Sequence[str]) -> str:
    values = item.tasks or {}
    return ", ".join(f"{task} {values[task]:.2f}" for task in tasks)
