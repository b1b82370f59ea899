"""Ranking metrics against dense oracles and the reference vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.training.retrieval.metrics import hit_rate, ndcg, summarise, target_ranks

NUM_ITEMS, ROWS, D, TEMPERATURE = 61, 72, 5, 0.05


def ranks_of(queries, table, targets, seen, *, num_items=NUM_ITEMS, chunk_items=1000):
    result = jax.jit(target_ranks, static_argnames=("num_items", "temperature", "chunk_items"))(
        jnp.asarray(queries),
        jnp.asarray(table),
        jnp.asarray(targets, jnp.int32),
        jnp.asarray(seen, jnp.int32),
        num_items=num_items,
        temperature=TEMPERATURE,
        chunk_items=chunk_items,
    )
    return np.asarray(result["rank"]), np.asarray(result["log_prob"])


def make_batch(seed=0, *, queries=6, num_seen=9):
    """Items along the axes, so that scores are exact in any order of summation and ties common.

    Seen ids repeat.
    """
    rng = np.random.default_rng(seed)
    table = np.eye(D, dtype=np.float32)[rng.integers(0, D, ROWS)] * rng.choice([-1, 1], (ROWS, 1))
    seen = rng.integers(0, 20, (queries, num_seen))
    targets = rng.integers(1, NUM_ITEMS + 1, queries)
    return (
        (rng.integers(-3, 4, (queries, D)) / 8).astype(np.float32),
        table.astype(np.float32),
        targets,
        seen,
    )


def oracle(queries, table, targets, seen):
    """Ranks and log-probabilities in float64, one query at a time."""
    ranks, log_probs = [], []
    items = table[: NUM_ITEMS + 1].astype(np.float64)
    items /= np.linalg.norm(items, axis=-1, keepdims=True)
    for query, target, past in zip(queries.astype(np.float64), targets, seen, strict=True):
        scores = items @ query
        ranked = np.setdiff1d(np.arange(1, NUM_ITEMS + 1), past[past != target])
        ranks.append(int((scores[ranked] >= scores[target]).sum()))
        log_probs.append(
            (scores[target] / TEMPERATURE) - np.log(np.exp(scores[1:] / TEMPERATURE).sum())
        )
    return np.array(ranks), np.array(log_probs)


@pytest.mark.parametrize("chunk_items", [1000, 72, 24, 20, 7])
def test_ranks_and_log_probabilities_equal_the_oracle(chunk_items):
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(50, D)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=-1, keepdims=True)
    table = rng.normal(size=(ROWS, D)).astype(np.float32)
    targets, seen = rng.integers(1, NUM_ITEMS + 1, 50), rng.integers(0, NUM_ITEMS + 1, (50, 30))
    ranks, log_probs = ranks_of(queries, table, targets, seen, chunk_items=chunk_items)
    expected_ranks, expected_log_probs = oracle(queries, table, targets, seen)
    np.testing.assert_array_equal(ranks, expected_ranks)
    np.testing.assert_allclose(log_probs, expected_log_probs, atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1000, 24, 7]))
def test_ties_count_against_the_target_whatever_the_chunks(seed, chunk_items):
    queries, table, targets, seen = make_batch(seed)
    ranks, log_probs = ranks_of(queries, table, targets, seen, chunk_items=chunk_items)
    expected_ranks, expected_log_probs = oracle(queries, table, targets, seen)
    np.testing.assert_array_equal(ranks, expected_ranks)
    np.testing.assert_allclose(log_probs, expected_log_probs, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_padding_rows_repeats_and_the_order_of_seen_change_nothing(seed):
    queries, table, targets, seen = make_batch(seed)
    before = ranks_of(queries, table, targets, seen, chunk_items=20)
    table = table.copy()
    table[0] = table[NUM_ITEMS + 1 :] = 100
    rng = np.random.default_rng(seed)
    seen = rng.permuted(
        np.concatenate([seen, seen[:, :4], np.full_like(seen, NUM_ITEMS + 3)], axis=1), axis=1
    )
    after = ranks_of(queries, table, targets, seen, chunk_items=20)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_allclose(before[1], after[1], rtol=1e-6)


@pytest.mark.parametrize("chunk_items", [1000, 20])
def test_equal_scores_give_the_number_of_ranked_items(chunk_items):
    queries, table = np.ones((3, D), np.float32), np.ones((ROWS, D), np.float32)
    seen = np.array([[0, 0, 0, 0], [5, 5, 9, 0], [7, 8, 9, NUM_ITEMS]])
    targets = np.array(
        [1, 5, NUM_ITEMS]
    )  # the last two are among their seen items and still are ranked
    ranks, log_probs = ranks_of(queries, table, targets, seen, chunk_items=chunk_items)
    np.testing.assert_array_equal(ranks, [NUM_ITEMS, NUM_ITEMS - 1, NUM_ITEMS - 3])
    np.testing.assert_allclose(log_probs, -np.log(NUM_ITEMS), rtol=1e-5)


@pytest.mark.parametrize("chunk_items", [1000, 20])
def test_nan_scores_give_the_worst_rank(chunk_items):
    queries, table, targets, seen = make_batch()
    queries[0] = np.nan
    worst = NUM_ITEMS - len(set(seen[0]) - {0, targets[0]})
    assert ranks_of(queries, table, targets, seen, chunk_items=chunk_items)[0][0] == worst
    queries, table, targets, seen = make_batch()
    table[targets[1]] = np.nan
    worst = NUM_ITEMS - len(set(seen[1]) - {0, targets[1]})
    assert ranks_of(queries, table, targets, seen, chunk_items=chunk_items)[0][1] == worst


def test_a_query_without_a_target_has_rank_0_and_no_probability():
    queries, table, targets, seen = make_batch()
    targets[2], targets[3] = 0, NUM_ITEMS + 1
    ranks, log_probs = ranks_of(queries, table, targets, seen)
    np.testing.assert_array_equal(ranks == 0, np.arange(6) // 2 == 1)
    np.testing.assert_array_equal(np.isnan(log_probs), np.arange(6) // 2 == 1)


def test_the_scores_of_the_whole_catalogue_are_never_in_memory():
    rows, queries = 100_000, 64
    compiled = (
        jax.jit(
            lambda q, t, i, s: target_ranks(
                q, t, i, s, num_items=rows - 1, temperature=TEMPERATURE, chunk_items=2000
            )
        )
        .lower(
            jax.ShapeDtypeStruct((queries, D), jnp.float32),
            jax.ShapeDtypeStruct((rows, D), jnp.float32),
            jax.ShapeDtypeStruct((queries,), jnp.int32),
            jax.ShapeDtypeStruct((queries, 50), jnp.int32),
        )
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < queries * rows * 4 / 5


def test_summarise_averages_hits_gains_and_reciprocal_ranks():
    ranks, log_probs = (
        np.array([1, 3, 10, 11, 60]),
        np.array([-1.0, -2.0, -3.0, -4.0, -5.0], np.float32),
    )
    history = np.array([3, 15, 16, 600, 3])
    metrics = summarise(ranks, log_probs, history)
    gains = 1 / np.log2(ranks + 1)
    assert metrics == pytest.approx(
        {
            "hr@1": 0.2,
            "hr@10": 0.6,
            "hr@50": 0.8,
            "hr@200": 1.0,
            "ndcg@10": gains[:3].sum() / 5,
            "ndcg@50": gains[:4].sum() / 5,
            "ndcg@200": gains.sum() / 5,
            "hr@10/se": np.std([1, 1, 1, 0, 0], ddof=1) / np.sqrt(5),
            "ndcg@10/se": np.std([*gains[:3], 0, 0], ddof=1) / np.sqrt(5),
            "mrr": (1 + 1 / 3 + 1 / 10 + 1 / 11 + 1 / 60) / 5,
            "repeats": 0.0,
            "log_perplexity": 3.0,
            "hr@10/history_0-15": 2 / 3,
            "ndcg@10/history_0-15": gains[:2].sum() / 3,
            "queries/history_0-15": 3,
            "hr@10/history_16-31": 1.0,
            "ndcg@10/history_16-31": gains[2],
            "queries/history_16-31": 1,
            "hr@10/history_512+": 0.0,
            "ndcg@10/history_512+": 0.0,
            "queries/history_512+": 1,
        }
    )
    with pytest.raises(ValueError, match="no queries"):
        summarise(ranks[:0], log_probs[:0], history[:0])


def test_a_target_that_is_left_out_is_a_miss_at_every_k_and_its_share_is_told():
    ranks, log_probs = np.array([1, np.inf, 2, np.inf]), np.array([-1.0, -2.0, -3.0, -4.0])
    metrics = summarise(ranks, log_probs, np.full(4, 3))
    assert metrics["repeats"] == 0.5
    assert [metrics[f"hr@{k}"] for k in (1, 10, 50, 200)] == [0.25, 0.5, 0.5, 0.5]
    assert metrics["ndcg@200"] == metrics["ndcg@10"] == (1 + 1 / np.log2(3)) / 4
    assert metrics["mrr"] == (1 + 1 / 2) / 4
    assert metrics["log_perplexity"] == 2.5


def test_ranks_and_metrics_equal_the_reference(golden):
    """The rule of the reference differs.

    A target beyond 2500, or itself among the seen items, counts as rank 2501.
    """
    g = golden("retrieval_metrics")
    max_k, num_items = int(g["max_k"]), len(g["item_ids"])
    column = {int(item): i + 1 for i, item in enumerate(g["item_ids"])} | {
        0: 0
    }  # our ids are 1..num_items
    seen = np.vectorize(lambda item: column.get(int(item), 0))(g["seen_ids"])
    targets = g["target_index"] + 1
    ranks = np.array([rank_of_scores(*row) for row in zip(g["scores"], targets, seen, strict=True)])
    ranks = np.where((ranks > max_k) | (seen == targets[:, None]).any(1), max_k + 1, ranks)
    np.testing.assert_array_equal(ranks, g["rank"])
    for k in (1, 10, 50, 100, 200, 500, 1000):
        assert hit_rate(ranks, k) == pytest.approx(float(g[f"hr_{k}"]), abs=1e-6)
    for k in (10, 50, 100, 200):
        assert ndcg(ranks, k) == pytest.approx(float(g[f"ndcg_{k}"]), abs=1e-6)
    metrics = summarise(ranks, np.zeros(len(ranks), np.float32), np.full(len(ranks), 20))
    assert metrics["mrr"] == pytest.approx(float(g["mrr"]), abs=1e-6)
    assert num_items == g["scores"].shape[1]


def rank_of_scores(scores, target, seen):
    """The rank of `target` with unit vectors that have these scores."""
    table = np.stack([scores, np.sqrt(1 - scores**2)], axis=1)
    table = np.concatenate([np.zeros((1, 2)), table]).astype(np.float32)
    query = np.array([[1, 0]], np.float32)
    return ranks_of(query, table, [target], seen[None], num_items=len(scores), chunk_items=1000)[0][
        0
    ]
