"""A run: config, data, mesh and model put together, for training and for users of its result."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from gr_jax.config import Config, ConfigError, DataConfig, MeshConfig, files
from gr_jax.data.batches.tokenizer import TokenScheme, token_scheme
from gr_jax.data.dataset import Dataset
from gr_jax.data.run_dataset import dataset_of
from gr_jax.models.embeddings import table_entries
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from gr_jax.training import processes, sharding, state
from gr_jax.training.checkpoint import Checkpoints
from gr_jax.training.optimizer import Optimizer, make_optimizer
from gr_jax.training.tables import admission
from gr_jax.training.tables.rowwise import cast_tables


@dataclass(frozen=True)
class Run:
    """The fixed parts of a run."""

    config: Config
    workdir: Path
    dataset: Dataset
    scheme: TokenScheme  # how events become tokens
    mesh: jax.sharding.Mesh
    graphdef: nnx.GraphDef  # structure of the model
    init_params: Callable[[PRNGKeyArray], dict]  # key -> fresh parameters
    optimizer: Optimizer
    # Entries of the items before the first step; None: entry = item id.
    vocabulary: admission.Vocabulary | None = None

    @property
    def item_entries(self) -> int:
        """Entries of a table that has one for each item of the catalogue."""
        return table_entries(self.dataset.num_items, self.mesh.size)

    def planned_state(self) -> state.TrainState:
        """Shapes, dtypes and shardings of the state: the target of restoring a checkpoint.

        Raises:
          ConfigError: there is no memory for such a state.
        """
        planned = state.planned(
            self.init_params,
            self.optimizer.init,
            mesh=self.mesh,
            rules=self.config.mesh.rules,
            vocabulary=self.vocabulary,
        )
        state.check_fits(planned)
        return planned

    def fresh_state(self) -> tuple[state.TrainState, state.TrainState]:
        """The state at step 0, sharded, and its shardings."""
        return state.create(
            self.init_params,
            self.optimizer.init,
            jax.random.fold_in(jax.random.key(self.config.seed), 0),
            mesh=self.mesh,
            rules=self.config.mesh.rules,
            vocabulary=self.vocabulary,
        )


def open_run(config: Config, workdir: Path, dataset: Dataset) -> Run:
    """Make the mesh and describe the model for this dataset."""
    keep_freed_memory()
    here = dataclasses.replace(config, data=_without_paths(config.data))
    processes.check_same("the config", repr(here))
    processes.check_same("the dataset", dataset.hash)
    scheme = token_scheme(config, dataset)

    # Mesh.
    mesh = sharding.make_mesh(config.mesh)
    processes.connect(mesh)

    # Model.
    sizes = ModelSizes.of(config, dataset, scheme, devices=mesh.size)
    graphdef, init_params = make_model(config.model, sizes)
    return Run(
        config,
        workdir,
        dataset,
        scheme,
        mesh,
        graphdef,
        init_params=lambda key: cast_tables(init_params(key), config.optimizer.table_dtype),
        optimizer=make_optimizer(config.optimizer),
        vocabulary=admission.initial(config, dataset, devices=mesh.size),
    )


def open_trained(workdir: Path, *, one_device: bool = False) -> tuple[Run, dict]:
    """The run in a workdir and the parameters of its best checkpoint, all of them in float32.

    Their item table has an entry for each item of the catalogue, whatever the vocabulary of the
    run. With fewer devices than the run was trained on, those that there are share the work.

    Args:
      workdir: folder of a run with at least one validation.
      one_device: use one device, whatever the mesh of the run was.

    Raises:
      ConfigError: the folder holds no run, or no validated checkpoint, or what it holds is damaged
        or does not belong together.
    """
    config = config_here(workdir, one_device=one_device)
    with best_checkpoint(workdir) as (checkpoints, step):
        run = open_run(config, workdir, dataset_of(workdir, config.data))
        best = checkpoints.restore(run.planned_state(), step=step)
        assert best is not None
        params = admission.catalogue_maker(run.mesh)(best[0])
        return run, cast_tables(params, "float32")


@contextlib.contextmanager
def best_checkpoint(workdir: Path) -> Iterator[tuple[Checkpoints, int]]:
    """The checkpoints of a run, open to be read, and the step of the best one.

    Raises:
      ConfigError: the run has none that is validated, or none that is whole.
    """
    no_checkpoint = ConfigError(
        f"{workdir} has no validated checkpoint yet: train at least until the first validation"
    )
    if not (workdir / "checkpoints").is_dir():  # Orbax would make the folder
        raise no_checkpoint
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        progress = checkpoints.newest_progress()
        if progress is None or not progress.best_step:
            raise no_checkpoint
        yield checkpoints, progress.best_step
    finally:
        checkpoints.close()


def config_here(workdir: Path, *, one_device: bool = False) -> Config:
    """The config of a workdir, with the devices that there are here.

    Raises:
      ConfigError: the folder holds no run, or its config is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise ConfigError(
            f"{workdir} holds no run (no config.json): train one with"
            f" python -m gr_jax.train --workdir={workdir}"
        )
    config = files.read(path)
    mesh = config.mesh
    if one_device:
        mesh = MeshConfig(data=1, rules=mesh.rules)
    elif max(1, mesh.data) * mesh.model > jax.device_count():
        mesh = MeshConfig(rules=mesh.rules)
    return dataclasses.replace(config, mesh=mesh)


def _without_paths(config: DataConfig) -> DataConfig:
    """Without the fields that may differ between machines."""
    return dataclasses.replace(config, path="", prepared="")


# glibc's numbers of the settings of malloc (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed blocks, if called before the first JAX computation.

    XLA's CPU backend allocates the temporaries of a step as one block and frees it at the end. By
    default glibc returns such a block to the kernel, and a third of the next step goes into page
    faults: measured on 2 cores, a training step of ML-1M base takes 1.3 times as long with the
    default, HSTU-large 1.6 times (`experiments/speed/train_speed.py --default-malloc`). One arena,
    because further ones cannot hold blocks above 64 MiB.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, 2**30)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
