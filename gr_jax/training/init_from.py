"""A run that begins where an earlier one ended: its best parameters, matched by raw ids.

Users have no parameters of their own, so the log may have others. The optimizer begins anew:
docs/daily.md says what its moments would be worth.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, PyTree

from gr_jax.config import Config, ConfigError, files
from gr_jax.data.batches.sequences import time_bounds
from gr_jax.data.batches.splits import (
    TrainingLog,
    first_events,
    first_not_before,
    training_log,
)
from gr_jax.data.dataset import Dataset
from gr_jax.data.run_dataset import dataset_of
from gr_jax.files import write_whole
from gr_jax.models.embeddings import ENTRY_MULTIPLE
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from gr_jax.training import processes, sharding
from gr_jax.training.console import say
from gr_jax.training.run import Run, best_checkpoint, config_here
from gr_jax.training.state import TrainState, shardings_of
from gr_jax.training.tables.admission import Vocabulary
from gr_jax.training.tables.carried import Match, carry, match_items, match_values, same_entries
from gr_jax.training.workdir import flatten, has_begun

RECORD = "init_from.json"  # in a workdir: the run that it began from
# Fields that decide which parameters there are, their shapes and what their entries mean.
SHAPING = ("model", "vocabulary", "data.max_length", "data.actions", "ranking.tasks")
TABLES = {"item": "num_items", "value": "num_feature_values"}  # kind -> size of `ModelSizes`


class Earlier(NamedTuple):
    """The run to begin from."""

    workdir: Path
    config: Config
    dataset: Dataset
    step: int  # of its best checkpoint
    params: dict[str, np.ndarray]  # of that checkpoint, by path
    vocabulary: dict[str, np.ndarray]  # of that checkpoint; empty where an item is its entry


def continued(earlier: Path, workdir: Path, log: Mapping[str, str]) -> Config:
    """The config of a run in `workdir` that goes on from an earlier one and was given no other.

    Args:
      earlier: the workdir to begin from.
      workdir: of the new run; if it has begun, its own config.
      log: fields of `config.data` that differ: the path of a newer log, names of its columns.

    Raises:
      ConfigError: `earlier` holds no run, or is `workdir`, or its log was generated.
    """
    if earlier.expanduser().resolve() == workdir.expanduser().resolve():
        raise ConfigError(f"--init-from={earlier} is the folder of this run: choose a --workdir")
    config = config_here(workdir if has_begun(workdir) else earlier)
    if log and config.data.source == "synthetic":
        raise ConfigError(f"--data={log.get('path', '')}: the log of {earlier} was generated")
    data = dataclasses.replace(config.data, **log)
    if data != config.data:  # another log has another prepared folder
        data = dataclasses.replace(data, prepared="")
    return dataclasses.replace(config, data=data)


def first_state(run: Run, plan: TrainState) -> TrainState:
    """The state at step 0: fresh, or with the parameters of the run in `train.init_from`.

    plan: shapes, dtypes and shardings, as of `run.planned_state`.

    Raises:
      ConfigError: there is no such run, or its parameters do not fit; names what differs.
    """
    if not run.config.train.init_from:
        return run.fresh_state()[0]
    earlier = _open(Path(run.config.train.init_from).expanduser())
    _check_meanings(run, earlier)
    values = match_values(earlier.dataset.catalogue, run.dataset.catalogue)
    items = match_items(
        earlier.dataset.catalogue, run.dataset.catalogue, values, _training_log(run)
    )
    _tell(run, earlier, items)

    vocabulary = _vocabulary(run, earlier, items)
    params = _params(run, earlier, plan.params, vocabulary, {"item": items, "value": values})
    init = jax.jit(run.optimizer.init, out_shardings=shardings_of(plan).opt_state)
    placed = jax.tree.map(
        lambda array, leaf: sharding.put_whole(array, leaf.sharding), vocabulary, plan.vocabulary
    )
    step = sharding.put_whole(np.zeros((), np.int32), plan.step.sharding)
    return TrainState(step, params, init(params), placed)


def _open(workdir: Path) -> Earlier:
    """The run in `workdir`, its dataset and the arrays of its best checkpoint, on the host."""
    config = config_here(workdir)
    dataset = dataset_of(workdir, config.data)
    with best_checkpoint(workdir) as (checkpoints, step):
        tree = checkpoints.arrays(step)
    leaves = jax.tree_util.tree_leaves_with_path(tree["params"])
    params = {sharding.path_name(path): leaf for path, leaf in leaves}
    return Earlier(workdir, config, dataset, step, params, tree.get("vocabulary") or {})


def _check_meanings(run: Run, earlier: Earlier) -> None:
    """Check what shapes alone do not tell: which action, task or shared entry is which."""
    then, now = earlier.config, run.config
    names = ["ranking.tasks", *(f"vocabulary.{n}" for n in ("kind", "rows", "hashes"))]
    names += ["vocabulary.shared_rows"] + ["seed"] * (now.vocabulary.kind != "catalogue")
    names += ["data.actions"] * any("action_table" in path for path in earlier.params)
    for name in names:
        theirs, ours = (flatten(files.to_dict(c))[name] for c in (then, now))
        if theirs != ours:
            raise ConfigError(
                f"train.init_from={earlier.workdir}: config.{name} is {theirs!r} there and"
                f" {ours!r} here; give the same, or train without it"
            )


def _training_log(run: Run) -> TrainingLog:
    """The events that train."""
    config, events = run.config, run.dataset.events
    if not config.ranking.tasks:
        return training_log(run.dataset, config.evaluate)
    moment = time_bounds(events.timestamp, config.ranking)["train"][1]
    return first_events(run.dataset, first_not_before(events.offsets, events.timestamp, moment))


def _kinds(run: Run) -> dict[str, Literal["item", "value"]]:
    """The tables, by path: those that grow with the items, or with the feature values."""
    sizes = ModelSizes.of(run.config, run.dataset, run.scheme, devices=run.mesh.size)
    more = math.lcm(ENTRY_MULTIPLE, run.mesh.size)

    def shapes(sizes: ModelSizes) -> dict[str, tuple[int, ...]]:
        init = make_model(run.config.model, sizes)[1]
        leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(init, jax.random.key(0)))
        return {sharding.path_name(path): leaf.shape for path, leaf in leaves}

    found, plain = {}, shapes(sizes)
    for kind, name in TABLES.items():
        if count := getattr(sizes, name):
            larger = shapes(dataclasses.replace(sizes, **{name: count + more}))
            found |= {path: kind for path in plain if plain[path] != larger[path]}
    return found


def _params(
    run: Run,
    earlier: Earlier,
    plan: dict,
    vocabulary: Vocabulary | None,
    matches: dict[str, Match],
) -> dict:
    """The parameters, placed as `plan` says."""
    kinds, free = _kinds(run), None
    if vocabulary is not None:  # an entry is of the items that it was of
        matches = matches | {"item": same_entries(run.config.vocabulary.table_ids(0))}
        free = _free_entries(run, vocabulary)

    def param(path: tuple, leaf: jax.ShapeDtypeStruct) -> PyTree:
        name = sharding.path_name(path)
        array = earlier.params.get(name)
        if array is not None and name in kinds:
            array = carry(array, matches[kinds[name]], leaf.shape[0])
            if free is not None and kinds[name] == "item":
                array[: len(free)][free] = 0
        if array is None or array.shape != leaf.shape:
            raise _misfit(run, earlier, name, array, leaf.shape)
        return sharding.put_whole(np.asarray(array, leaf.dtype), leaf.sharding)

    wanted = {sharding.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(plan)}
    for name in earlier.params:
        if name not in wanted:
            raise _misfit(run, earlier, name, earlier.params[name], None)
    return jax.tree_util.tree_map_with_path(param, plan)


def _misfit(
    run: Run,
    earlier: Earlier,
    name: str,
    theirs: np.ndarray | None,
    ours: tuple[int, ...] | None,
) -> ConfigError:
    """The line for a parameter that one of both runs does not have, or in another shape."""
    then, now = (flatten(files.to_dict(config)) for config in (earlier.config, run.config))
    fields = [
        f"config.{field} is {then[field]!r} there and {value!r} here"
        for field, value in now.items()
        if field.startswith(SHAPING) and then[field] != value
    ]
    shown = [
        "none" if shape is None else "x".join(map(str, shape)) or "one number"
        for shape in (None if theirs is None else theirs.shape, ours)
    ]
    what = f"; {', '.join(fields)}" if fields else "; the features of data differ"
    return ConfigError(
        f"train.init_from={earlier.workdir}: the parameter {name} is {shown[0]} there and"
        f" {shown[1]} here{what}: give the same, or train without it"
    )


def _vocabulary(run: Run, earlier: Earlier, items: Match) -> Vocabulary | None:
    """The entries of the items at step 0: those that they had, which a new one gets by its hashes.

    Counts go on from where they were; of an item that is gone, the entry is free.
    """
    if run.vocabulary is None or "seen" not in run.vocabulary:
        return run.vocabulary
    known = np.flatnonzero(~items.is_new)
    found = {name: np.array(array) for name, array in run.vocabulary.items()}
    for name, array in earlier.vocabulary.items():
        before = np.asarray(array)[items.source[known]]
        found[name][known] = before - (earlier.step if name == "last" else 0)
    return found


def _free_entries(run: Run, vocabulary: Vocabulary) -> Bool[np.ndarray, " n"]:
    """The entries that no item has: they wait for one as zeros."""
    config = run.config.vocabulary
    free = np.zeros(config.table_ids(0) + 1, bool)
    if config.kind == "admitted":
        free[config.shared_rows + 1 :] = True
        free[vocabulary["rows"]] = False
    return free


def _tell(run: Run, earlier: Earlier, items: Match) -> None:
    """Say what the run begins from, and write it beside its config."""
    new = int(items.is_new.sum())
    known = len(items.source) - 1 - new
    gone = earlier.dataset.num_items - known
    say(
        f"from    {earlier.workdir}, step {earlier.step}: {known:,} items are known, {new:,} new,"
        f" {gone:,} gone"
    )
    record = {
        "workdir": str(earlier.workdir),
        "step": earlier.step,
        "dataset": earlier.dataset.hash,
        "items": {"known": known, "new": new, "gone": gone},
    }
    path = run.workdir / RECORD
    processes.on_first(lambda: write_whole(path, json.dumps(record, indent=2) + "\n"))


def origin(workdir: Path) -> dict[str, dict]:
    """The entry `init_from` of result.json; empty for a run that began from nothing."""
    path = workdir / RECORD
    return {"init_from": json.loads(path.read_text())} if path.is_file() else {}
