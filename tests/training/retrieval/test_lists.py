import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.training.retrieval.lists import best_items

best = jax.jit(best_items, static_argnames=("k", "num_items", "chunk_items"))


@settings(max_examples=25)
@given(
    st.integers(0, 2**31),
    st.sampled_from([(9, 9), (7, 3), (7, 4), (7, 100)]),
    st.sampled_from([0, 5]),
)
def test_the_best_items_are_those_of_sorting_all_scores(seed, sizes, seen_items):
    num_items, chunk = sizes
    rng = np.random.default_rng(seed)
    queries = rng.integers(-2, 3, (4, 2)).astype(np.float32)  # many ties
    items = rng.integers(-2, 3, (num_items + 3, 2)).astype(np.float32)
    seen = rng.integers(0, num_items + 1, (4, seen_items)).astype(np.int32)

    found = best(queries, items, seen, k=6, num_items=num_items, chunk_items=chunk)

    for query, gone, row in zip(queries, seen, np.asarray(found), strict=True):
        left = [i for i in range(1, num_items + 1) if i not in gone]
        expected = sorted(left, key=lambda i: (-float(items[i] @ query), i))[:6]
        assert row.tolist() == expected + [0] * (6 - len(expected))
