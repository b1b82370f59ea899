"""`gr_jax.load`: the best checkpoint of a workdir, with its programs, as a model that answers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from gr_jax.config import ConfigError
from gr_jax.data.batches.batch import Batch, Impressions
from gr_jax.data.dataset import Dataset
from gr_jax.models.embeddings import table_entries
from gr_jax.serving import CACHE_MB, index, ranker
from gr_jax.serving.cache import CachedEncoder, CachedPredictor
from gr_jax.serving.history import HistoryReader
from gr_jax.serving.m_falcon import MICRO_BATCHES, CandidateScorer, QueryScorer, Settings
from gr_jax.serving.model import TrainedModel, left_out_events
from gr_jax.serving.newer_log import newer_log
from gr_jax.serving.retriever import Encoder, Retriever
from gr_jax.serving.rows import RowMaker
from gr_jax.serving.trained import Trained
from gr_jax.training import sharding
from gr_jax.training.objective import objective_of
from gr_jax.training.run import Run, open_trained


def load(
    workdir: str | Path,
    *,
    data: str | Path = "",
    index: str = "exact",
    cache_mb: int | float = CACHE_MB,
) -> TrainedModel:
    """The best checkpoint of a run, ready to answer; on one device, without dropout.

    Args:
      workdir: folder of a run of `python -m gr_jax.train`.
      data: a newer log in the format of the run's, with the histories of users as they are now;
        "" = as they were at the training. Items that the model does not know are skipped.
      index: retrieval: "exact", or "faiss" for an approximate search.
      cache_mb: memory for cached histories, in MiB; 0 keeps none.

    Raises:
      ConfigError: the folder holds no run with a checkpoint, or its files are damaged, or the newer
        log cannot be read.
    """
    run, params = open_trained(Path(workdir), one_device=True)
    newer = newer_log(run.config.data, data) if data else None
    return trained_model(run, params, newer=newer, index_backend=index, cache_mb=cache_mb)


def trained_model(
    run: Run,
    params: dict,
    *,
    newer: Dataset | None = None,
    index_backend: str = "exact",
    cache_mb: int | float = CACHE_MB,
) -> TrainedModel:
    """As `load`, of an open run and its parameters."""
    if not 0 <= cache_mb < 2**40:  # nor NaN
        raise ConfigError(f"cache_mb={cache_mb}: must be at least 0, and finite")
    max_bytes = int(cache_mb * 2**20)
    if run.scheme.tasks:
        answerer = _ranker(run, params, max_bytes)
    else:
        answerer = _retriever(run, params, index_backend, max_bytes)
    reader = HistoryReader.of(run.config, run.dataset, newer)
    left_out = left_out_events(run.config)
    version = version_of(run, params)
    encode = sharding.on_mesh(run.mesh, jax.jit(functools.partial(vectors_at, run.graphdef)))
    trained = Trained(
        run.workdir,
        run.config,
        encode=functools.partial(encode, params),
        evaluate=lambda split: objective_of(run).evaluate(params, split),
    )
    return TrainedModel(
        run.dataset, reader, answerer, left_out=left_out, trained=trained, version=version
    )


def version_of(run: Run, params: dict) -> str:
    """12 hexadecimal digits by which a model is told from another: of config, log and parameters.

    Where the run lies and how it came about does not matter.
    """
    model = dataclasses.replace(run.config.model, attention="")  # as the device has it
    digest = hashlib.sha256(f"{model!r} {run.dataset.hash}".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(sharding.path_name(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:12]


def last_vectors(
    graphdef: nnx.GraphDef, params: dict, batch: Batch, last: Int[Array, " R"]
) -> Float[Array, "R D"]:
    """Retrieval: the vector at the last token of each row."""
    vectors = nnx.merge(graphdef, params).encode(batch)
    return jnp.take_along_axis(vectors, last[:, None, None], axis=1)[:, 0]


def vectors_at(
    graphdef: nnx.GraphDef, params: dict, batch: Batch, token: Int[Array, " Q"]
) -> Float[Array, "Q D"]:
    """Retrieval: the vectors at flat places of tokens."""
    vectors = nnx.merge(graphdef, params).encode(batch)
    return vectors.reshape(-1, vectors.shape[-1])[token]


def predictions(
    graphdef: nnx.GraphDef, params: dict, batch: Batch | Impressions
) -> Float[Array, "*T Y"]:
    """Ranking: the predictions of each task at each token or impression."""
    model = nnx.merge(graphdef, params)
    return model.predictions(model.rank(batch))


def _retriever(run: Run, params: dict, index_backend: str, max_bytes: int) -> Retriever:
    vectors = nnx.merge(run.graphdef, params).item_vectors()
    items = index.build(vectors, num_items=run.dataset.num_items, backend=index_backend)
    maker = RowMaker(run.dataset, run.scheme, run.config.data.max_length)
    if run.config.model.kind == "hstu" and max_bytes:
        scorer = QueryScorer(run.graphdef, params)
        return Retriever(CachedEncoder(scorer, maker, max_bytes=max_bytes), items)
    encode = sharding.on_mesh(run.mesh, jax.jit(functools.partial(last_vectors, run.graphdef)))
    return Retriever(Encoder(functools.partial(encode, params), maker), items)


def _ranker(run: Run, params: dict, max_bytes: int) -> ranker.Ranker:
    num_items, max_length = run.dataset.num_items, run.config.data.max_length
    block = ranker.block_size(num_items)
    if run.config.model.kind == "dlrm":
        predict = jax.jit(functools.partial(predictions, run.graphdef))
        predictor = ranker.ImpressionPredictor(
            functools.partial(sharding.on_mesh(run.mesh, predict), params),
            RowMaker(run.dataset, run.scheme, max_length),
            block=block,
            entries=table_entries(num_items),
        )
    else:
        sizes = tuple(sorted({min(size, block) for size in MICRO_BATCHES}))
        scorer = CandidateScorer(run.graphdef, params, Settings(micro_batches=sizes))
        # A training sequence of `max_length` events includes the one that is asked about.
        maker = RowMaker(run.dataset, run.scheme, max_length - 1)
        predictor = CachedPredictor(scorer, maker, max_bytes=max_bytes)
    return ranker.Ranker(predictor, run.scheme.tasks, num_items=num_items, block=block)
