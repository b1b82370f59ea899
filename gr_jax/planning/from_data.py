"""The sizes of a run from its prepared dataset or its raw log or, where there is neither, from assumed ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gr_jax.config import Config, ConfigError, SyntheticConfig
from gr_jax.data.batches import epochs, packing, ranking, stochastic_length
from gr_jax.data.batches.sequences import time_bounds
from gr_jax.data.batches.tokenizer import token_scheme
from gr_jax.data.dataset import Dataset
from gr_jax.data.log import raw_files
from gr_jax.data.log.preparation import prepare
from gr_jax.data.log.synthetic import lengths as log_normal_lengths
from gr_jax.planning.sizes import Sizes

SAMPLE = 20_000  # histories drawn where the log is not there


def sizes_of(config: Config, *, items: int, mean_length: float, device_multiple: int) -> Sizes:
    """The sizes of a run whose batches are shared by `device_multiple` shards.

    Args:
      config: of the run; source="synthetic" gives the sizes itself and generates nothing.
      items, mean_length: of the catalogue and of a history in events; 0 = from the config or the data.
      device_multiple: rows of a batch are a multiple of this.

    Raises:
      ConfigError: neither given nor to be found.
    """
    made_up = config.data.synthetic if config.data.source == "synthetic" else None
    if items or mean_length or made_up:
        items = items or (made_up.num_items if made_up else 0)
        mean_length = mean_length or (made_up.mean_length if made_up else 0.0)
        if not (items and mean_length):
            raise ConfigError(
                "--items and --mean_length belong together: the data are not looked at"
            )
        users = made_up.num_users if made_up else 0
        return assumed(
            config,
            items=items,
            mean_length=mean_length,
            num_users=users,
            device_multiple=device_multiple,
        )
    prepared = Path(config.data.prepared).expanduser() / "meta.json"
    raw = raw_files.find(config.data)
    if not (config.data.prepared and prepared.is_file()) and not (raw and raw.files):
        raise ConfigError(
            "no prepared dataset and no raw log: tell the sizes with --items=N --mean_length=EVENTS, or set"
            " --config.data.path"
        )
    return measured(config, prepare(config.data), device_multiple=device_multiple)


def measured(config: Config, dataset: Dataset, *, device_multiple: int) -> Sizes:
    """The sizes of training on `dataset`, by its first epoch (a stream is taken as an epoch)."""
    scheme = token_scheme(config, dataset)
    if config.ranking.tasks:
        before = time_bounds(dataset.events.timestamp, config.ranking)["valid"][0]
        rows = ranking.training_batches(
            dataset, config, scheme, before, device_multiple=device_multiple
        )
    else:
        users = config.train.batch_users
        rows = epochs.retrieval_batches(
            dataset,
            config.data,
            scheme,
            batch_users=users,
            device_multiple=device_multiple,
            seed=config.seed,
        )
    lengths = rows.count(rows.epoch(0).spans)
    return Sizes(
        num_items=dataset.num_items,
        max_tokens=scheme.max_tokens(config.data.max_length),
        batch_rows=rows.batch_rows,
        row_length=rows.row_length,
        users_per_batch=len(lengths) / rows.steps(0),
        lengths=lengths,
        num_users=len(lengths),
        num_actions=len(dataset.catalogue.actions) if scheme.with_actions else 0,
        num_feature_values=dataset.catalogue.num_feature_values,
        item_values=0
        if dataset.catalogue.item_features is None
        else dataset.catalogue.item_features.shape[1],
        contexts=scheme.num_user_features,
        max_series=scheme.max_series,
        num_tasks=len(scheme.tasks),
        source=f"the dataset {dataset.folder}",
    )


def assumed(
    config: Config, *, items: int, mean_length: float, num_users: int, device_multiple: int
) -> Sizes:
    """The sizes of training on log-normal histories of this mean length (as `data/synthetic.py`), without features."""
    rng = np.random.default_rng(config.seed)
    try:
        world = SyntheticConfig(num_users=SAMPLE, num_items=items, mean_length=mean_length)
    except ConfigError:
        raise ConfigError(
            f"--items={items} --mean_length={mean_length}: at least 1 item and 5 events"
        ) from None
    max_length, alpha = config.data.max_length, config.data.stochastic_length_alpha
    events = np.minimum(
        log_normal_lengths(world, rng) - 1, max_length
    )  # an event to predict stays out
    cut = rng.random(SAMPLE) >= stochastic_length.keep_full_probability(events, max_length, alpha)
    events = np.where(cut, stochastic_length.threshold(max_length, alpha), events)
    per_event = 2 if config.ranking.tasks and config.ranking.tokens != "sum" else 1
    lengths, max_tokens = per_event * events, per_event * max_length
    if max_tokens > config.data.row_length:
        rule = f"at least {max_tokens}, the tokens of data.max_length={max_length} events"
        raise ConfigError(f"config.data.row_length={config.data.row_length}: must be {rule}")
    users = config.train.batch_users
    packed = packing.pack(lengths, config.data.row_length)
    rows = -(-round(packed.num_rows * users / SAMPLE) // device_multiple) * device_multiple
    return Sizes(
        num_items=items,
        max_tokens=max_tokens,
        batch_rows=max(rows, device_multiple),
        row_length=config.data.row_length,
        users_per_batch=float(users),
        lengths=lengths,
        num_users=num_users,
        num_actions=len(config.data.actions)
        if config.ranking.tasks or config.model.use_actions
        else 0,
        num_tasks=len(config.ranking.tasks),
        source=f"assumed: {items:,} items, log-normal histories of {mean_length:g} events in the mean",
    )
