"""Write the export of a run: its program as StableHLO (`jax.export`) and its parameters."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
from jax import export as jax_export
from jaxtyping import Array

from gr_jax import folders
from gr_jax.config import ConfigError
from gr_jax.data.batches.batch import Batch
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from gr_jax.serving import buckets, load, ranker, retriever
from gr_jax.serving.export import FOLDER, META, PARAMETERS, PROGRAM, VERSION, digest, fields_of
from gr_jax.serving.export import no_flatbuffers as _no_flatbuffers
from gr_jax.serving.history import warm_up_history
from gr_jax.serving.rows import RowMaker
from gr_jax.training.run import Run, open_trained
from gr_jax.training.sharding import path_name

PLATFORMS = ("cpu", "cuda", "tpu")


def export(workdir: str | Path) -> Path:
    """Write the export of the best checkpoint into the workdir; the export's folder.

    The folder is written whole or not at all. Its program is, in retrieval,
    `encode(parameters, fields, last) -> [b, D]`, and in ranking
    `rank(parameters, fields) -> [b, L, Y]`. The fields are those of `Batch`, by name; b is any
    number of rows, their length is fixed.

    Raises:
      ConfigError: as `open_trained`, or flatbuffers is not installed, or the model has no sequences
        of tokens.
    """
    workdir = Path(workdir)
    run, params = open_trained(workdir, one_device=True)
    if run.config.model.kind == "dlrm":
        raise ConfigError(
            "only models of token sequences can be exported, not config.model.kind='dlrm'"
        )
    program, meta = _program(run, params)
    try:
        data = program.serialize()
    except ImportError:
        raise _no_flatbuffers() from None

    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    arrays: dict[str, np.ndarray] = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    meta |= {"version": VERSION, "parameters": list(leaves), "jax": jax.__version__}
    meta["dataset"] = run.dataset.hash
    building = Path(tempfile.mkdtemp(prefix=".export-", dir=workdir))
    try:
        (building / PROGRAM).write_bytes(data)
        with (building / PARAMETERS).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        meta["files"] = folders.manifest(building)
        meta["digest"] = digest(meta)
        (building / META).write_text(json.dumps(meta, indent=2) + "\n")
        folder = workdir / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _program(run: Run, params: dict) -> tuple[jax_export.Exported, dict]:
    """The exported function, and the facts that its caller needs."""
    config = run.config.model
    if config.kind == "hstu":  # the implementation that runs everywhere
        config = dataclasses.replace(config, attention="xla")
    graphdef, _ = make_model(config, ModelSizes.of(run.config, run.dataset, run.scheme))
    structure = jax.tree.structure(params)

    def rank(leaves: list, fields: dict) -> Array:
        return load.predictions(graphdef, jax.tree.unflatten(structure, leaves), Batch(**fields))

    def encode(leaves: list, fields: dict, last: Array) -> Array:
        tree = jax.tree.unflatten(structure, leaves)
        return load.last_vectors(graphdef, tree, Batch(**fields), last)

    function, batch, last, meta = (
        (rank, *_ranking_example(run)) if run.scheme.tasks else (encode, *_retrieval_example(run))
    )
    (b,) = jax_export.symbolic_shape("b")
    symbolic = lambda x: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype)
    fixed = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.tree.leaves(params)]
    fields = fields_of(batch)
    program = jax_export.export(jax.jit(function), platforms=PLATFORMS)(
        fixed, *jax.tree.map(symbolic, (fields, *last))
    )
    return program, meta | {"fields": list(fields)}


def _retrieval_example(run: Run) -> tuple[Batch, tuple[np.ndarray, ...], dict]:
    """Rows, the columns of their last tokens, and the facts about their length."""
    maker = RowMaker(run.dataset, run.scheme, run.config.data.max_length)
    length = buckets.lengths(run.scheme.max_tokens(maker.max_events))[-1]
    history = warm_up_history(run.dataset)
    batch, last = retriever.query_rows([history], maker, lengths=(length,))
    return batch, (last,), {"kind": "encode", "row_length": length}


def _ranking_example(run: Run) -> tuple[Batch, tuple[np.ndarray, ...], dict]:
    """Rows with candidates, no further arguments, and the facts about their length."""
    max_length = run.config.data.max_length
    length = -(-run.scheme.max_tokens(max_length) // 8) * 8
    block = ranker.block_size(run.dataset.num_items)
    batch, _ = ranker.candidate_rows(
        [warm_up_history(run.dataset)],
        [np.ones(1, np.int32)],
        RowMaker(run.dataset, run.scheme, max_length - 1),
        block=block,
        lengths=(length,),
    )
    return batch, (), {"kind": "rank", "row_length": length, "block": block}
