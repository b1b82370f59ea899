"""Serves from an export: the program and its parameters as files, none of the model's or the training's code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from gr_jax.config import ConfigError, files
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.tokenizer import token_scheme
from gr_jax.data.dataset import open_dataset
from gr_jax.data.log.preparation import prepare
from gr_jax.serving import index as indices
from gr_jax.serving.encoder import Encoder
from gr_jax.serving.history import HistoryReader
from gr_jax.serving.model import TrainedModel, judged_with_repeats
from gr_jax.serving.ranker import SequenceRanker
from gr_jax.training.workdir import check_dataset

VERSION = 1
FOLDER = "export"  # in the workdir
PROGRAM, PARAMETERS, META = "program.jax", "parameters.npz", "export.json"
LABELS = ("label", "outcome", "outcome_weight")  # what a batch tells of the future


def load_exported(
    workdir: str | Path, *, prepared: str | Path = "", index: str = "exact"
) -> TrainedModel:
    """What `gr_jax.load` gives, from the export that `python -m gr_jax.export` wrote into the workdir.

    Raises:
      ConfigError: there is no export, or it is damaged, from another version, or of another log.
    """
    workdir = Path(workdir)
    meta, parameters, call = read(workdir / FOLDER)
    config = files.read(workdir / "config.json")
    dataset = open_dataset(prepared) if prepared else prepare(config.data)
    check_dataset(workdir, dataset)
    scheme, reader = token_scheme(config, dataset), HistoryReader.of(config, dataset)
    parts: dict[str, Any] = {"encoder": None, "items": None, "rank": None}
    parameters = {name: jax.device_put(parameters[name]) for name in meta["parameters"]}
    leaves = list(parameters.values())
    common: dict[str, Any] = {
        "max_length": config.data.max_length,
        "lengths": (meta["row_length"],),
    }
    if meta["kind"] == "rank":
        rank = lambda leaves, batch: call(leaves, fields_of(batch))
        parts["rank"] = SequenceRanker(rank, leaves, dataset, scheme, **common, block=meta["block"])
    else:
        encode = lambda leaves, batch, last: call(leaves, fields_of(batch), last)
        parts["encoder"] = Encoder(encode, leaves, dataset, scheme, **common)
        vectors = unit(np.asarray(parameters["embeddings/item_table"]))
        parts["items"] = indices.build(vectors, num_items=dataset.num_items, backend=index)
    return TrainedModel(
        dataset, reader, **parts, tasks=scheme.tasks, repeats=judged_with_repeats(config)
    )


def read(folder: Path) -> tuple[dict, Any, Any]:
    """The facts, the parameters by name, and the program as a compiled function of an export.

    Raises:
      ConfigError: as `load_exported`.
    """
    remedy = f"python -m gr_jax.export --workdir={folder.parent}"
    if not (folder / META).is_file():
        raise ConfigError(f"{folder}: no export here; {remedy}")
    try:
        meta = json.loads((folder / META).read_text())
        version = meta["version"]
        parameters = dict(np.load(folder / PARAMETERS))
        program = jax_export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    except ImportError:
        raise ConfigError(
            "jax.export needs the package flatbuffers: pip install 'gr-jax[serve]'"
        ) from None
    except Exception as error:  # zip, JSON and flatbuffers each have their own
        raise ConfigError(f"{folder}: damaged ({type(error).__name__}); {remedy}") from None
    if version != VERSION:
        raise ConfigError(f"{folder}: export version {version}, this is {VERSION}; {remedy}")
    if jax.default_backend().replace("gpu", "cuda") not in program.platforms:
        raise ConfigError(
            f"{folder}: exported for {', '.join(program.platforms)}, not for {jax.default_backend()}"
        )
    return meta, parameters, jax.jit(program.call)


def fields_of(batch: Batch) -> dict[str, Any]:
    """What the program reads of a batch, by name."""
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return {
        name: value for name, value in fields.items() if value is not None and name not in LABELS
    }


def unit(vectors: np.ndarray) -> np.ndarray:
    """x / max(|x|, 1e-6), as the model normalises."""
    length = np.sqrt(np.square(vectors).sum(-1, keepdims=True))
    return vectors / np.maximum(length, 1e-6)
