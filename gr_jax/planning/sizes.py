"""Sizes of a run: measured on its prepared dataset or raw log, or assumed where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from gr_jax.config import Config, ConfigError, SyntheticConfig
from gr_jax.data.batches import epochs, packing, ranking, stochastic_length
from gr_jax.data.batches.sequences import time_bounds
from gr_jax.data.batches.tokenizer import token_scheme
from gr_jax.data.dataset import Dataset
from gr_jax.data.log import formats
from gr_jax.data.log.preparation import prepare
from gr_jax.data.log.synthetic import lengths as log_normal_lengths
from gr_jax.models.sizes import ModelSizes

SAMPLE = 20_000  # histories drawn where the log is not there


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run that its data decide."""

    num_items: int  # X
    max_tokens: int  # N of the attention: max tokens of a sequence
    batch_rows: int  # R, of the global batch
    row_length: int  # L
    users_per_batch: float  # mean sequences in a global batch
    # tokens of sequences: of all, or of a sample that stands for them
    lengths: Int[np.ndarray, " B"]
    num_users: int = 0  # sequences of an epoch
    num_actions: int = 0
    num_feature_values: int = 0
    item_features: int = 0  # F: feature values of an item
    user_features: int = 0  # C: user features, a token each
    max_series: int = 0  # max entries of slow series in a sequence
    num_tasks: int = 0  # Y; 0 = retrieval
    source: str = "given"  # where the numbers are from, in words

    @property
    def tokens(self) -> int:
        """Tokens of a global batch, padding included."""
        return self.batch_rows * self.row_length

    @property
    def real_tokens(self) -> float:
        """Mean tokens of a global batch that are not padding."""
        return self.users_per_batch * float(self.lengths.mean())

    @property
    def pairs(self) -> float:
        """Mean causal pairs inside the sequences of a global batch."""
        n = self.lengths.astype(np.float64)
        return self.users_per_batch * float((n * (n + 1) / 2).mean())

    def model(self, tasks: tuple[str, ...], *, devices: int = 1) -> ModelSizes:
        """The sizes of the model on `devices` devices, whose ranking predicts `tasks`."""
        return ModelSizes(
            num_items=self.num_items,
            max_length=self.max_tokens,
            num_actions=self.num_actions,
            num_feature_values=self.num_feature_values,
            tasks=tasks,
            devices=devices,
        )


def sizes_of(config: Config, *, items: int, mean_length: float, shards: int) -> Sizes:
    """The sizes of a run whose batches are shared by this number of shards.

    Args:
      config: of the run; source="synthetic" gives the sizes itself and generates nothing.
      items, mean_length: of the catalogue and of a history in events; 0 = from config or data.
      shards: divides the rows of a batch.

    Raises:
      ConfigError: neither given nor to be found.
    """
    world = config.data.synthetic if config.data.source == "synthetic" else None
    if items or mean_length or world:
        items = items or (world.num_items if world else 0)
        mean_length = mean_length or (world.mean_length if world else 0.0)
        if not (items and mean_length):
            raise ConfigError(
                "--items and --mean_length belong together: the data are not looked at"
            )
        users = world.num_users if world else 0
        return assumed(
            config,
            items=items,
            mean_length=mean_length,
            num_users=users,
            shards=shards,
        )

    meta = Path(config.data.prepared).expanduser() / "meta.json"
    raw = formats.find(config.data)
    if not (config.data.prepared and meta.is_file()) and not (raw and raw.files):
        raise ConfigError(
            "no prepared dataset and no raw log: give the sizes by --items=N --mean_length=EVENTS,"
            " or set --config.data.path"
        )
    return measured(config, prepare(config.data), shards=shards)


def measured(config: Config, dataset: Dataset, *, shards: int) -> Sizes:
    """The sizes of training on `dataset`, by its first epoch; also those of streaming."""
    scheme, catalogue = token_scheme(config, dataset), dataset.catalogue
    if config.ranking.tasks:
        before = time_bounds(dataset.events.timestamp, config.ranking)["valid"][0]
        rows = ranking.training_batches(dataset, config, scheme, before, shards=shards)
    else:
        rows = epochs.retrieval_batches(
            dataset,
            config.data,
            scheme,
            batch_users=config.train.batch_users,
            shards=shards,
            seed=config.seed,
            evaluate=config.evaluate,
        )
    lengths = rows.count(rows.epoch(0).spans)
    features = catalogue.item_features
    return Sizes(
        num_items=dataset.num_items,
        max_tokens=scheme.max_tokens(config.data.max_length),
        batch_rows=rows.rows_computed,
        row_length=rows.row_length,
        users_per_batch=len(lengths) / rows.steps(0),
        lengths=lengths,
        num_users=len(lengths),
        num_actions=len(catalogue.actions) if scheme.with_actions else 0,
        num_feature_values=catalogue.num_feature_values,
        item_features=0 if features is None else features.shape[1],
        user_features=scheme.num_user_features,
        max_series=scheme.max_series,
        num_tasks=len(scheme.tasks),
        source=f"the dataset {dataset.folder}",
    )


def assumed(
    config: Config, *, items: int, mean_length: float, num_users: int, shards: int
) -> Sizes:
    """The sizes of training on log-normal histories, as of `data/log/synthetic.py`; no features."""
    per_event = 2 if config.ranking.tasks and config.ranking.tokens != "sum" else 1
    max_length, row_length = config.data.max_length, config.data.row_length
    if per_event * max_length > row_length:
        rule = (
            f"at least {per_event * max_length}, the tokens of data.max_length={max_length} events"
        )
        raise ConfigError(f"config.data.row_length={row_length}: must be {rule}")

    lengths = per_event * _assumed_events(config, items, mean_length)
    users = config.train.batch_users
    rows = round(packing.pack(lengths, row_length).num_rows * users / SAMPLE)
    with_actions = config.ranking.tasks or config.model.use_actions
    return Sizes(
        num_items=items,
        max_tokens=per_event * max_length,
        batch_rows=packing.padded(max(1, rows), shards),
        row_length=row_length,
        users_per_batch=float(users),
        lengths=lengths,
        num_users=num_users,
        num_actions=len(config.data.actions) if with_actions else 0,
        num_tasks=len(config.ranking.tasks),
        source=(
            f"assumed: {items:,} items, log-normal histories of {mean_length:g} events in the mean"
        ),
    )


def _assumed_events(config: Config, items: int, mean_length: float) -> Int[np.ndarray, " B"]:
    """Events of `SAMPLE` histories in an epoch, without the one to predict."""
    try:
        world = SyntheticConfig(num_users=SAMPLE, num_items=items, mean_length=mean_length)
    except ConfigError:
        rule = "at least 1 item and 5 events"
        raise ConfigError(f"--items={items} --mean_length={mean_length}: {rule}") from None
    max_length, alpha = config.data.max_length, config.data.stochastic_length_alpha
    rng = np.random.default_rng(config.seed)
    events = np.minimum(log_normal_lengths(world, rng) - 1, max_length)
    cut = rng.random(SAMPLE) >= stochastic_length.keep_full_probability(events, max_length, alpha)
    return np.where(cut, stochastic_length.threshold(max_length, alpha), events)
