"""`gr_jax.load`: the best checkpoint of a workdir, with its programs, as something that answers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from gr_jax.data.batches.batch import Batch
from gr_jax.models.embeddings import table_rows
from gr_jax.models.layers import l2_normalise
from gr_jax.serving import index as indices
from gr_jax.serving import ranker
from gr_jax.serving.cached_encoder import CachedEncoder
from gr_jax.serving.cached_ranker import CachedRanker
from gr_jax.serving.encoder import Encoder
from gr_jax.serving.history import HistoryReader
from gr_jax.serving.http.limits import CACHE_MB
from gr_jax.serving.model import TrainedModel, judged_with_repeats
from gr_jax.training import sharding
from gr_jax.training.ranking.losses import are_regressions
from gr_jax.training.run import Run, open_trained


def load(
    workdir: str | Path,
    *,
    prepared: str | Path = "",
    index: str = "exact",
    cache_mb: int | float = CACHE_MB,
) -> TrainedModel:
    """The best checkpoint of a run, ready to answer; on one device, without dropout.

    Args:
      workdir: folder of a run of `python -m gr_jax.train`.
      prepared: folder of the prepared dataset, where it is not where the run had it.
      index: retrieval: "exact", or "faiss" for an approximate search.
      cache_mb: memory for what was computed of histories, in MiB; 0 keeps none.

    Raises:
      ConfigError: the folder holds no run with a checkpoint, or what it holds is damaged.
    """
    run, params = open_trained(
        Path(workdir), prepared=str(prepared) if prepared else "", one_device=True
    )
    return ready(run, params, index=index, cache_mb=cache_mb)


def ready(
    run: Run, params: dict, *, index: str = "exact", cache_mb: int | float = CACHE_MB
) -> TrainedModel:
    """As `load`, of a run that is open and its parameters."""
    reader = HistoryReader.of(run.config, run.dataset)
    parts: dict[str, Any] = {"encoder": None, "items": None, "rank": None}
    if run.scheme.tasks:
        parts["rank"] = _ranker(run, params, cache_mb)
    else:
        vectors = l2_normalise(params["embeddings"]["item_table"])
        parts["items"] = indices.build(vectors, num_items=run.dataset.num_items, backend=index)
        parts["encoder"] = _encoder(run, params, cache_mb)
    return TrainedModel(
        run.dataset,
        reader,
        **parts,
        tasks=run.scheme.tasks,
        repeats=judged_with_repeats(run.config),
    )


def last_vectors(
    graphdef: nnx.GraphDef, params: Any, batch: Batch, last: Int[Array, " R"]
) -> Float[Array, "R D"]:
    """Retrieval: what comes after the last token of each row."""
    vectors = nnx.merge(graphdef, params).encode(batch)
    return jnp.take_along_axis(vectors, last[:, None, None], axis=1)[:, 0]


def predictions(
    graphdef: nnx.GraphDef, params: Any, batch: Any, *, tasks: tuple[str, ...]
) -> Float[Array, "*T Y"]:
    """Ranking: the probability of each task at each token, or the number where the task is one."""
    logits = nnx.merge(graphdef, params).rank(batch)
    return jnp.where(np.array(are_regressions(tasks)), logits, jax.nn.sigmoid(logits))


def _encoder(run: Run, params: dict, cache_mb: int | float) -> CachedEncoder | Encoder:
    max_length = run.config.data.max_length
    if run.config.model.kind == "hstu" and cache_mb:
        parts = run.graphdef, params, run.dataset, run.scheme
        return CachedEncoder(*parts, max_length=max_length, cache_bytes=int(cache_mb * 2**20))
    encode = jax.jit(functools.partial(last_vectors, run.graphdef))
    encode = sharding.on_mesh(run.mesh, encode)
    return Encoder(encode, params, run.dataset, run.scheme, max_length=max_length)


def _ranker(
    run: Run, params: dict, cache_mb: int | float
) -> CachedRanker | ranker.ImpressionRanker:
    is_number = np.array(are_regressions(run.scheme.tasks))
    block = ranker.block_of(run.dataset.num_items)
    sizes: dict[str, Any] = {"max_length": run.config.data.max_length, "block": block}
    if run.config.model.kind == "dlrm":
        rank = jax.jit(functools.partial(predictions, run.graphdef, tasks=run.scheme.tasks))
        parts = sharding.on_mesh(run.mesh, rank), params, run.dataset, run.scheme
        return ranker.ImpressionRanker(
            *parts, **sizes, table_rows=table_rows(run.dataset.num_items)
        )
    squash = lambda x: np.where(is_number, x, 1 / (1 + np.exp(-x))).astype(np.float32)
    budget = int(cache_mb * 2**20)
    return CachedRanker(
        run.graphdef, params, run.dataset, run.scheme, **sizes, cache_bytes=budget, squash=squash
    )
