import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.config import ConfigError
from gr_jax.serving import buckets, index

ITEMS, WIDTH = 300, 8


def table(seed: int = 0) -> np.ndarray:
    """Rows for items 0 to ITEMS, and padding rows that would win every search."""
    rows = np.random.default_rng(seed).normal(size=(ITEMS + 20, WIDTH)).astype(np.float32)
    rows[0] = rows[ITEMS + 1 :] = 1
    return rows


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def queries(count: int, seed: int = 1) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, WIDTH)))


CHUNKED = index.ExactIndex(
    jnp.asarray(unit(table())), num_items=ITEMS, chunk=128
)  # three chunks, the last one part empty
WHOLE = index.ExactIndex(jnp.asarray(unit(table())), num_items=ITEMS)
VECTORS = unit(table()[: ITEMS + 1])


def expected(query: np.ndarray, k: int, removed, allowed) -> list[int]:
    scores = VECTORS @ query
    ids = [
        i
        for i in range(1, ITEMS + 1)
        if i not in set(removed) and (allowed is None or i in set(allowed))
    ]
    return sorted(ids, key=lambda i: -scores[i])[:k]


ids = st.lists(st.integers(1, ITEMS), max_size=40).map(lambda x: np.array(x, np.int32))


@settings(max_examples=12, deadline=None)
@given(
    asked=st.lists(st.tuples(ids, st.one_of(st.none(), ids)), min_size=1, max_size=3),
    k=st.integers(1, 20),
    seed=st.integers(0, 99),
    chunked=st.booleans(),
)
def test_the_best_items_are_those_of_a_full_sort(asked, k, seed, chunked):
    vectors = queries(len(asked), seed)
    removed, allowed = zip(*asked, strict=True)
    found, scores = (CHUNKED if chunked else WHOLE).search(
        vectors, k, removed=removed, allowed=allowed
    )
    for q, (without, only) in enumerate(asked):
        right = expected(vectors[q], k, without, only)
        assert found[q, : len(right)].tolist() == right
        assert (found[q, len(right) :] == 0).all() and np.isneginf(scores[q, len(right) :]).all()
        np.testing.assert_allclose(scores[q, : len(right)], VECTORS[right] @ vectors[q], atol=1e-6)


def test_more_items_than_there_are_leave_zeros_at_the_end():
    found, scores = CHUNKED.search(queries(1), ITEMS + 5)
    assert sorted(found[0, :ITEMS].tolist()) == list(range(1, ITEMS + 1))
    assert (found[0, ITEMS:] == 0).all() and np.isneginf(scores[0, ITEMS:]).all()


def test_of_equal_scores_the_smaller_id_comes_first():
    rows = unit(np.ones((11, WIDTH), np.float32))
    same = index.ExactIndex(jnp.asarray(rows), num_items=10)
    assert same.search(queries(1), 4)[0].tolist() == [[1, 2, 3, 4]]


def test_more_queries_than_a_bucket_are_answered_in_parts():
    many = queries(buckets.ROWS[-1] + 3)
    together, alone = WHOLE.search(many, 5), WHOLE.search(many[-1:], 5)
    assert together[0].shape == (len(many), 5)
    assert together[0][-1].tolist() == alone[0][0].tolist()


def test_scores_of_given_items_are_their_dot_products():
    items = np.array([[5, 300, 5], [1, 2, 3]], np.int32)
    np.testing.assert_allclose(
        CHUNKED.scores(queries(2), items),
        np.einsum("qd,qmd->qm", queries(2), VECTORS[items]),
        atol=1e-6,
    )


def test_many_candidates_of_many_queries_are_scored_in_parts():
    items = np.random.default_rng(0).integers(1, ITEMS + 1, (3, 5000)).astype(np.int32)
    expected = np.einsum("qd,qmd->qm", queries(3), VECTORS[items])
    np.testing.assert_allclose(WHOLE.scores(queries(3), items), expected, atol=1e-6)


def test_an_unknown_backend_is_told():
    with pytest.raises(ConfigError, match="index='annoy': must be one of exact, faiss"):
        index.build(jnp.asarray(unit(table())), num_items=ITEMS, backend="annoy")


def test_without_faiss_its_backend_tells_how_to_install_it(monkeypatch):
    monkeypatch.setattr(index.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'gr-jax\[faiss\]'"):
        index.build(jnp.asarray(unit(table())), num_items=ITEMS, backend="faiss")


def test_faiss_finds_nearly_all_of_the_best_and_keeps_to_the_lists():
    pytest.importorskip("faiss")
    approximate = index.build(jnp.asarray(unit(table())), num_items=ITEMS, backend="faiss")
    vectors = queries(10)
    exact = WHOLE.search(vectors, 10)[0]
    removed = [row[:3] for row in exact]
    found, scores = approximate.search(vectors, 10, removed=removed)
    right = WHOLE.search(vectors, 10, removed=removed)[0]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(found, right, strict=True)]) > 0.9
    assert not any(np.isin(a, b).any() for a, b in zip(found, removed, strict=True))
    assert (np.diff(scores, axis=1) <= 0).all()
    only = [np.array([3, 4], np.int32)] * 10
    assert set(approximate.search(vectors, 10, allowed=only)[0].ravel()) == {0, 3, 4}


def test_buckets_cover_every_size():
    assert (
        buckets.lengths(200) == (64, 128, 200)
        and buckets.lengths(8) == (8,)
        and buckets.lengths(65) == (72,)
    )
    assert buckets.lengths(260) == (64, 128, 264), "256 would save little of 264"
    assert [buckets.fitting(buckets.ROWS, n) for n in (1, 2, 8, 9, 32)] == [1, 8, 8, 32, 32]
    assert (
        list(buckets.powers_of_four(16, 100)) == [16, 64, 256]
        and buckets.power_of_four(65, least=16) == 256
    )
    assert buckets.rows_up_to(5) == (1, 8) and buckets.rows_up_to(99) == (1, 8, 32)
    with pytest.raises(ValueError, match="above the largest"):
        buckets.fitting(buckets.ROWS, 33)
