"""Serve from an export: its program and parameters, none of the model's or the training's code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import export as jax_export
from jaxtyping import Array

from gr_jax import folders
from gr_jax.baselines import knn_vectors
from gr_jax.config import ConfigError, files
from gr_jax.data.batches.tokenizer import token_scheme
from gr_jax.data.run_dataset import dataset_of
from gr_jax.errors import shown
from gr_jax.serving import index as indices
from gr_jax.serving.export import (
    FOLDER,
    META,
    PARAMETERS,
    PROGRAM,
    VERSION,
    digest,
    fields_of,
    no_flatbuffers,
)
from gr_jax.serving.history import HistoryReader
from gr_jax.serving.model import TrainedModel, left_out_events
from gr_jax.serving.newer_log import newer_log
from gr_jax.serving.query import Answerer
from gr_jax.serving.ranker import Ranker, SequencePredictor
from gr_jax.serving.retriever import Encoder, Retriever, with_knn
from gr_jax.serving.rows import RowMaker

ITEMS = "embeddings/item_table"  # the parameters of items


def load_exported(
    workdir: str | Path, *, data: str | Path = "", index: str = "exact"
) -> TrainedModel:
    """The model of `gr_jax.load`, from the export in the workdir. Arguments as there.

    Raises:
      ConfigError: there is no export, or it is damaged, from another version, or of another log.
    """
    workdir = Path(workdir)
    meta, parameters, call = read(workdir / FOLDER)
    config = files.read(workdir / "config.json")
    dataset = dataset_of(workdir, config.data)
    if meta["dataset"] != dataset.hash or len(parameters[ITEMS]) <= dataset.num_items:
        raise ConfigError(
            f"{workdir / FOLDER}: of a run on another log;"
            f" python -m gr_jax.export --workdir={workdir}"
        )
    scheme, max_length = token_scheme(config, dataset), config.data.max_length
    on_device = {name: jax.device_put(parameters[name]) for name in meta["parameters"]}
    leaves, lengths = list(on_device.values()), (meta["row_length"],)

    if meta["kind"] == "rank":
        maker, block = RowMaker(dataset, scheme, max_length - 1), meta["block"]
        rank = lambda batch: call(leaves, fields_of(batch))
        predictor = SequencePredictor(rank, maker, block=block, lengths=lengths)
        answerer: Answerer = Ranker(
            predictor, scheme.tasks, num_items=dataset.num_items, block=block
        )
    else:
        encode = lambda batch, last: call(leaves, fields_of(batch), last)
        alone = Encoder(encode, RowMaker(dataset, scheme, max_length), lengths=lengths)
        model = config.model
        knn = knn_vectors.read(workdir, dataset.num_items) if model.knn_rank else None
        vectors = unit(np.asarray(on_device[ITEMS]))
        encoder, vectors = with_knn(alone, vectors, knn, model.temperature)
        items = indices.build(vectors, num_items=dataset.num_items, backend=index)
        answerer = Retriever(encoder, items)
    newer = newer_log(config.data, data) if data else None
    reader = HistoryReader.of(config, dataset, newer)
    return TrainedModel(dataset, reader, answerer, left_out=left_out_events(config))


def read(folder: Path) -> tuple[dict, dict[str, np.ndarray], Callable[..., Array]]:
    """The facts, the parameters by name, and the compiled program of an export.

    Raises:
      ConfigError: as `load_exported`.
    """
    remedy = f"python -m gr_jax.export --workdir={folder.parent}"
    if not (folder / META).is_file():
        raise ConfigError(f"{folder}: no export here; {remedy}")
    meta = folders.read_json(folder / META, remedy=remedy)
    if (version := meta.get("version")) != VERSION:
        told = f"export version {shown(version)}, this is {VERSION}"
        raise ConfigError(f"{folder / META}: {told}; {remedy}")
    if meta.get("digest") != digest(meta):
        raise ConfigError(f"{folder / META}: damaged, its checksum is another; {remedy}")
    folders.check_manifest(folder, meta["files"], lists=META, remedy=remedy)
    try:
        with np.load(folder / PARAMETERS) as file:
            parameters = dict(file)
        program = jax_export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    except ImportError:
        raise no_flatbuffers() from None
    except Exception as error:  # zip and flatbuffers each have their own
        raise ConfigError(f"{folder}: damaged ({type(error).__name__}); {remedy}") from None
    _check_parameters(folder / PARAMETERS, parameters, meta["parameters"], program, remedy)
    backend = jax.default_backend()
    if backend.replace("gpu", "cuda") not in program.platforms:
        raise ConfigError(
            f"{folder}: exported for {', '.join(program.platforms)}, not for {backend}"
        )
    return meta, parameters, jax.jit(program.call)


def _check_parameters(
    file: Path,
    parameters: dict[str, np.ndarray],
    names: list[str],
    program: jax_export.Exported,
    remedy: str,
) -> None:
    """Check that the parameters are those that the program takes, in its order, and are finite."""
    if set(parameters) != set(names):
        raise ConfigError(f"{file}: damaged, it has other names than {META} says; {remedy}")
    for name, wanted in zip(names, program.in_avals, strict=False):  # other arguments follow
        found = parameters[name]
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            told = f"{name} is {found.dtype}{list(found.shape)}, the program takes {wanted}"
            raise ConfigError(f"{file}: damaged, {told}; {remedy}")
        if not np.isfinite(np.asarray(found, np.float32)).all():
            raise ConfigError(f"{file}: {name} is not finite; train again, then {remedy}")


def unit(vectors: np.ndarray) -> np.ndarray:
    """x / max(|x|, 1e-6), as the model normalises."""
    length = np.sqrt(np.square(vectors).sum(-1, keepdims=True))
    return vectors / np.maximum(length, 1e-6)
