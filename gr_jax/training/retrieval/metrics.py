"""Metrics of retrieval: the rank of the held-out item in the whole catalogue."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from gr_jax.models.layers import l2_normalise

Ranks = Real[np.ndarray, " Q"]  # 1 = best; inf = the target is left out of the ranking

# events before the target, where the buckets of `by_history` start
HISTORY_STARTS = (0, 16, 32, 64, 128, 256, 512)


def target_ranks(
    queries: Float[Array, "Q Dr"],
    item_table: Float[Array, "rows D"],
    targets: Int[Array, " Q"],
    seen: Int[Array, "Q S"],
    *,
    num_items: int,
    temperature: float,
    chunk_items: int,
    further: Float[Array, "rows r"] | None = None,
) -> dict[str, Array]:
    """Rank and log-probability of each query's target among items 1..num_items.

    queries: unit length, without their columns for `further`. item_table: raw item vectors by id,
    normalised here; entry 0 and entries above num_items are padding. further: more columns of the
    vectors of items, taken as they are. seen: ids that are not ranked, in any order, with repeats,
    0 = none; the target itself is ranked even if it is among them. Scores of [Q, chunk_items] are
    the most that is in memory.

    Returns:
      rank [Q] int32: ranked items that score at least as high as the target, itself included: 1 is
        best and ties count against it. A score that is NaN gives the worst rank. 0 where the target
        is not a real item.
      log_prob [Q] float32: natural log of the softmax of dot / temperature over all items, seen
        ones too; NaN where the target is not a real item.
    """
    rows, chunk = item_table.shape[0], min(chunk_items, item_table.shape[0])
    chunks = -(-rows // chunk)
    queries = queries.astype(jnp.float32)
    removed = _removed(seen, targets, num_items)

    def scores_of(index):
        """Scores [Q, chunk], the id of the first column, the first id not in an earlier chunk."""
        # The last chunk reaches back, not past the end.
        first = jnp.minimum(index * chunk, rows - chunk)
        items = l2_normalise(jax.lax.dynamic_slice_in_dim(item_table, first, chunk))
        if further is not None:
            more = jax.lax.dynamic_slice_in_dim(further, first, chunk)
            items = jnp.concatenate([items, more], axis=-1)
        # Full float32, where a GPU would round the factors: near ties decide ranks.
        scores = jnp.matmul(queries, items.T, precision=jax.lax.Precision.HIGHEST)
        return scores, first, jnp.maximum(index * chunk, 1)

    def is_real(first, start):
        ids = first + jnp.arange(chunk)
        return (ids >= start) & (ids <= num_items)

    def pick(scores, ids, first, start):
        """Scores [Q, S] of ids [Q, S], and a mask of those in the chunk."""
        found = (ids >= start) & (ids < first + chunk)
        return jnp.take_along_axis(scores, jnp.where(found, ids - first, 0), axis=1), found

    def find_target(carry, scores, first, start):
        target_score, log_sum, rank = carry
        score, found = pick(scores, targets[:, None], first, start)
        target_score = jnp.where(found[:, 0], score[:, 0], target_score)
        logits = jnp.where(is_real(first, start), scores / temperature, -jnp.inf)
        return target_score, jnp.logaddexp(log_sum, jax.nn.logsumexp(logits, axis=1)), rank

    def count_above(carry, scores, first, start):
        target_score, log_sum, rank = carry
        count = jnp.sum(
            _at_least(scores, target_score) & is_real(first, start), axis=1, dtype=jnp.int32
        )
        score, found = pick(scores, removed, first, start)
        unranked = jnp.sum(_at_least(score, target_score) & found, axis=1, dtype=jnp.int32)
        return target_score, log_sum, rank + count - unranked

    carry = (
        jnp.full(targets.shape, jnp.nan),
        jnp.full(targets.shape, -jnp.inf),
        jnp.zeros(targets.shape, jnp.int32),
    )
    if chunks == 1:
        scored = scores_of(0)
        carry = count_above(find_target(carry, *scored), *scored)
    else:
        # The target's score is found in a first pass. Both passes are one loop around one matmul,
        # so that the target compares equal to itself to the last bit.
        def step(i, carry):
            return jax.lax.cond(i < chunks, find_target, count_above, carry, *scores_of(i % chunks))

        carry = jax.lax.fori_loop(0, 2 * chunks, step, carry)
    target_score, log_sum, rank = carry
    real = (targets >= 1) & (targets <= num_items)
    log_prob = jnp.where(real, target_score / temperature - log_sum, jnp.nan)
    return {"rank": jnp.where(real, rank, 0), "log_prob": log_prob}


def _at_least(scores, target_score):
    """Scores not below the target's; true for a NaN on either side."""
    return ~(scores < target_score[:, None])


def _removed(seen, targets, num_items):
    """`seen` with repeats, the target and ids outside the catalogue set to -1."""
    seen = jnp.sort(seen, axis=1)
    repeat = jnp.pad(seen[:, 1:] == seen[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(
        repeat | (seen < 1) | (seen > num_items) | (seen == targets[:, None]), -1, seen
    )


def summarise(
    ranks: Ranks,
    log_probs: Float[np.ndarray, " Q"],
    history: Int[np.ndarray, " Q"],
    at: tuple[int, ...] = (),
) -> dict[str, float]:
    """Means over the queries, and those of `by_history`, by the names of metrics.jsonl.

    A target without a rank, which the served lists leave out, is a miss at every K and adds 0 to
    `mrr`. `log_perplexity`, in nats, is that of the softmax over all items, so it counts such
    targets as the others.

    Args:
      ranks: of each query's target, 1 = best; inf = left out.
      log_probs: of the target.
      history: events of the user before the target.
      at: K of further hr@K and ndcg@K.

    Raises:
      ValueError: there are no queries.
    """
    if not len(ranks):
        raise ValueError("no queries to evaluate: no user has enough events for this split")
    perplexity = {"log_perplexity": -float(np.mean(log_probs, dtype=np.float64))}
    return rank_means(ranks, at) | perplexity | by_history(ranks, history)


def by_history(ranks: Ranks, history: Int[np.ndarray, " Q"]) -> dict[str, float]:
    """hr@10, ndcg@10 and the number of queries of each bucket of history length.

    Names are such as `hr@10/history_16-31`.
    """
    bucket = np.searchsorted(HISTORY_STARTS, history, side="right") - 1
    names = [bucket_name(HISTORY_STARTS, index) for index in range(len(HISTORY_STARTS))]
    return grouped(ranks, bucket, names)


def grouped(ranks: Ranks, group: Int[np.ndarray, " Q"], names: Sequence[str]) -> dict[str, float]:
    """hr@10, ndcg@10 and the number of queries of each group that has any, such as `hr@10/NAME`."""
    found = {}
    for index in np.unique(group):
        here = ranks[group == index]
        values = {
            "hr@10": hit_rate(here, 10),
            "ndcg@10": ndcg(here, 10),
            "queries": float(len(here)),
        }
        found |= {f"{metric}/{names[index]}": value for metric, value in values.items()}
    return found


def bucket_name(starts: Sequence[int], index: int) -> str:
    """The name of a bucket of history lengths.

    >>> tuple(bucket_name((0, 16, 64), i) for i in range(3))
    ('history_0-15', 'history_16-63', 'history_64+')
    """
    end = f"-{starts[index + 1] - 1}" if index + 1 < len(starts) else "+"
    return f"history_{starts[index]}{end}"


def rank_means(ranks: Ranks, at: tuple[int, ...] = ()) -> dict[str, float]:
    """The metrics that depend on the ranks alone; `repeats` is the share of inf.

    `hr@10/se` and `ndcg@10/se` are standard errors over the queries. at: further K.
    """
    metrics = {f"hr@{k}": hit_rate(ranks, k) for k in sorted({1, 10, 50, 200, *at})}
    metrics |= {f"ndcg@{k}": ndcg(ranks, k) for k in sorted({10, 50, 200, *at})}
    metrics |= {
        "hr@10/se": _standard_error(ranks <= 10),
        "ndcg@10/se": _standard_error(gains(ranks, 10)),
    }
    return metrics | {"mrr": float(np.mean(1 / ranks)), "repeats": float(np.mean(np.isinf(ranks)))}


def _standard_error(values: Real[np.ndarray, " Q"] | Bool[np.ndarray, " Q"]) -> float:
    """Standard error of the mean over the queries."""
    if len(values) < 2:
        return 0.0
    return float(np.std(values, ddof=1, dtype=np.float64) / np.sqrt(len(values)))


def hit_rate(ranks: Ranks, k: int) -> float:
    """HR@k: share of queries with their target among the first k.

    >>> hit_rate(np.array([1, 10, 11, 300]), 10)
    0.5
    """
    return float(np.mean(ranks <= k))


def ndcg(ranks: Ranks, k: int) -> float:
    """NDCG@k with one relevant item: mean of 1 / log2(rank + 1) where rank <= k, else 0.

    >>> ndcg(np.array([1, 3, 11]), 10)
    0.5
    """
    return float(np.mean(gains(ranks, k)))


def gains(ranks: Ranks, k: int) -> Float[np.ndarray, " Q"]:
    """What each query adds to NDCG@k."""
    return np.where(ranks <= k, 1 / np.log2(ranks + 1.0), 0)
