"""A run: config, data, mesh and model put together; what train and evaluate share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from gr_jax.config import Config, ConfigError, DataConfig, files
from gr_jax.data.batches.tokenizer import TokenScheme, token_scheme
from gr_jax.data.dataset import Dataset
from gr_jax.data.log.preparation import prepare
from gr_jax.models.recommender import functional
from gr_jax.training import dataset_identity, processes, sharding, state
from gr_jax.training.host_memory import keep_freed_memory
from gr_jax.training.optimizer import Optimizer, make_optimizer
from gr_jax.training.tables import admission
from gr_jax.training.tables.rowwise import cast_tables

# Fields that may differ on resuming: they change how long, where or how loudly a run goes, not what it learns.
FREE_ON_RESUME = (
    "train.epochs",
    "train.steps",
    "train.log_every",
    "train.patience",
    "train.checkpoint_every",
    "mesh",
    "data.path",
    "data.prepared",
)


@dataclass(frozen=True)
class Run:
    """The fixed parts of a run."""

    config: Config
    workdir: Path
    dataset: Dataset
    scheme: TokenScheme  # how histories become tokens
    mesh: jax.sharding.Mesh
    graphdef: nnx.GraphDef  # structure of the model
    init_params: Callable[[PRNGKeyArray], dict]  # key -> fresh parameters
    optimizer: Optimizer
    # Rows of a training batch are a multiple of this: the `data` axis of the mesh that the run began on.
    device_multiple: int
    # rows of the items before the first step; None: row = item id
    vocabulary: admission.Vocabulary | None = None

    def planned_state(self) -> state.TrainState:
        """Shapes, dtypes and shardings of the state: the target that a checkpoint is restored against."""
        rules = self.config.mesh.rules
        return state.planned(
            self.init_params,
            self.optimizer.init,
            mesh=self.mesh,
            rules=rules,
            vocabulary=self.vocabulary,
        )

    def fresh_state(self) -> tuple[state.TrainState, state.TrainState]:
        """The state at step 0, sharded, and its shardings."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), 0)
        rules = self.config.mesh.rules
        return state.create(
            self.init_params,
            self.optimizer.init,
            key,
            mesh=self.mesh,
            rules=rules,
            vocabulary=self.vocabulary,
        )


def open_run(config: Config, workdir: Path) -> Run:
    """Prepares the data (or finds it prepared), makes the mesh and describes the model.

    Of several processes the first prepares before the others, which find its dataset where they share a disk.
    """
    keep_freed_memory()
    dataset = processes.first_then_others(
        lambda: prepare(config.data, progress=processes.is_first())
    )
    processes.check_same(
        "the config", repr(dataclasses.replace(config, data=_without_paths(config.data)))
    )
    processes.check_same(
        "the dataset", str([dataset.num_users, dataset.num_items, dataset.num_events])
    )
    scheme = token_scheme(config, dataset)
    mesh = sharding.make_mesh(config.mesh)
    processes.connect(mesh)
    graphdef, init_params = functional(config.model, **model_sizes(config, dataset, scheme))
    fresh = lambda key: cast_tables(init_params(key), config.optimizer.table_dtype)
    optimizer = make_optimizer(config.optimizer)
    rows = admission.initial(config, dataset)
    return Run(
        config, workdir, dataset, scheme, mesh, graphdef, fresh, optimizer, mesh.shape["data"], rows
    )


def _without_paths(config: DataConfig) -> DataConfig:
    """Without what may differ between machines."""
    return dataclasses.replace(config, path="", prepared="")


def model_sizes(config: Config, dataset: Dataset, scheme: TokenScheme) -> dict[str, int]:
    """What the data decide of the model: arguments of `functional`."""
    return {
        "num_items": config.vocabulary.table_ids(dataset.num_items),
        "max_length": scheme.max_tokens(config.data.max_length),
        "num_actions": len(dataset.catalogue.actions) if scheme.with_actions else 0,
        "num_feature_values": dataset.catalogue.num_feature_values,
        "num_tasks": len(scheme.tasks),
    }


def check_workdir(config: Config, workdir: Path) -> None:
    """Looks whether `workdir` may become, or is, the home of `config`; of several processes the first looks.

    Raises:
      ConfigError: the folder holds a run with another config (names the first field that differs) or checkpoints of
        an unknown one. A run that has logged nothing yet may be replaced.
    """
    processes.first_then_others(lambda: _check(config, workdir) if processes.is_first() else None)


def _check(config: Config, workdir: Path) -> None:
    path = workdir / "config.json"
    if path.exists() and has_begun(workdir):
        before, now = flatten(files.to_dict(files.read(path))), flatten(files.to_dict(config))
        for name, value in now.items():
            if before[name] != value and not name.startswith(FREE_ON_RESUME):
                raise ConfigError(
                    f"{workdir} holds a run with config.{name}={before[name]!r}, not {value!r}:"
                    " choose another --workdir"
                )
    elif has_checkpoints(workdir):
        raise ConfigError(
            f"{workdir} holds checkpoints but no config.json, so what they belong to is not known: put the config.json"
            " back, or choose another --workdir"
        )


def has_checkpoints(workdir: Path) -> bool:
    """Whether a run there has saved something."""
    checkpoints = workdir / "checkpoints"
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def has_begun(workdir: Path) -> bool:
    """Whether a run there has logged or saved something; else another one may take its place."""
    return has_checkpoints(workdir) or (workdir / "metrics.jsonl").exists()


def claim_workdir(run: Run) -> None:
    """Makes the workdir of `run` its home, once it is known that the run can begin: config.json and dataset.json.

    Raises:
      ConfigError: the run there was trained on another log, or the processes do not share the folder.
    """
    if has_begun(run.workdir):
        dataset_identity.check(run.workdir, run.dataset)
    processes.first_then_others(lambda: _claim(run) if processes.is_first() else None)
    if jax.process_count() > 1 and not processes.all_true((run.workdir / "config.json").exists()):
        raise ConfigError(
            f"{run.workdir}: not seen by all processes; choose a --workdir on a disk that they share"
        )


def _claim(run: Run) -> None:
    run.workdir.mkdir(parents=True, exist_ok=True)
    files.save(run.config, run.workdir / "config.json")
    if not (
        has_begun(run.workdir) and (run.workdir / dataset_identity.FILE).exists()
    ):  # else it was just compared
        dataset_identity.remember(run.workdir, run.dataset)


def flatten(values: dict, prefix: str = "") -> dict:
    """Nested dicts as one dict with dotted names."""
    flat = {}
    for name, value in values.items():
        flat |= (
            flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}
        )
    return flat
