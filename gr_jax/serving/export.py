"""The program of a trained run as portable StableHLO, with its parameters beside it (`jax.export`)."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from gr_jax.config import ConfigError
from gr_jax.data.batches.batch import Batch
from gr_jax.models.recommender import functional
from gr_jax.serving import buckets, exported, load, ranker
from gr_jax.serving.encoder import Encoder, first_item
from gr_jax.training.run import Run, model_sizes, open_trained
from gr_jax.training.sharding import path_name

PLATFORMS = ("cpu", "cuda", "tpu")


def export(workdir: str | Path, *, prepared: str = "") -> Path:
    """Writes the export of the best checkpoint into the workdir, whole or not at all; returns its folder.

    Retrieval: `encode(parameters, fields, last) -> [b, D]`. Ranking: `rank(parameters, fields) -> [b, L, Y]`. The
    fields are those of `Batch`, by name; b is any number of rows, their length is fixed.

    Raises:
      ConfigError: as `open_trained`, or flatbuffers is not installed, or the model has no sequences of tokens.
    """
    workdir = Path(workdir)
    run, params = open_trained(workdir, prepared=prepared, one_device=True)
    if run.config.model.kind == "dlrm":
        raise ConfigError(
            "only models of token sequences can be exported, not config.model.kind='dlrm'"
        )
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    program, meta = _program(run, params)
    try:
        data = program.serialize()
    except ImportError:
        raise ConfigError(
            "jax.export needs the package flatbuffers: pip install 'gr-jax[serve]'"
        ) from None
    building = Path(tempfile.mkdtemp(prefix=".export-", dir=workdir))
    try:
        (building / exported.PROGRAM).write_bytes(data)
        arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in leaves.items()}
        np.savez(building / exported.PARAMETERS, **arrays)
        meta |= {"version": exported.VERSION, "parameters": list(leaves), "jax": jax.__version__}
        (building / exported.META).write_text(json.dumps(meta, indent=2) + "\n")
        folder = workdir / exported.FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _program(run: Run, params: dict) -> tuple[Any, dict]:
    """The exported function, and what its caller needs to know."""
    config = run.config.model
    if config.kind == "hstu":  # the implementation that runs everywhere
        config = dataclasses.replace(config, attention="xla")
    graphdef, _ = functional(config, **model_sizes(run.config, run.dataset, run.scheme))
    structure = jax.tree.structure(params)
    max_length, history = run.config.data.max_length, first_item(run.dataset)
    common = _not_run, None, run.dataset, run.scheme
    if run.scheme.tasks:
        length, block = (
            -(-run.scheme.max_tokens(max_length) // 8) * 8,
            ranker.block_of(run.dataset.num_items),
        )
        rows = ranker.SequenceRanker(*common, max_length=max_length, block=block, lengths=(length,))
        batch, last = rows.rows([history], [np.ones(1, np.int32)])[0], ()
        meta = {"kind": "rank", "row_length": length, "block": block}
    else:
        length = buckets.lengths(run.scheme.max_tokens(max_length))[-1]
        batch, *last = Encoder(*common, max_length=max_length, lengths=(length,)).rows([history])
        meta = {"kind": "encode", "row_length": length}

    def function(leaves: list, fields: dict, *last: Any) -> Any:
        tree, batch = jax.tree.unflatten(structure, leaves), Batch(**fields)
        if run.scheme.tasks:
            return load.predictions(graphdef, tree, batch, tasks=run.scheme.tasks)
        return load.last_vectors(graphdef, tree, batch, *last)

    (b,) = jax_export.symbolic_shape("b")
    symbolic = lambda x: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype)
    fixed = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.tree.leaves(params)]
    fields = exported.fields_of(batch)
    program = jax_export.export(jax.jit(function), platforms=PLATFORMS)(
        fixed, *jax.tree.map(symbolic, (fields, *last))
    )
    return program, meta | {"fields": list(fields)}


def _not_run(*_: Any) -> Any:
    raise AssertionError("only the rows are made")
