import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.config import ModelConfig
from gr_jax.data.batches.batch import Batch
from gr_jax.models import kv_cache
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from tests.models.ranking_batch import (
    ACTIONS,
    ITEMS,
    TASK_NAMES,
    VALUES,
    one_per_row,
    random_sequence,
)

N, ROOM, CANDIDATES = 16, 20, 3  # tokens of a history, and what a cache has room for
SMALL = ModelConfig(
    width=8, num_blocks=2, num_heads=2, qk_width=3, v_width=5, head_width=6, swiglu_width=7
)
SIZES = ModelSizes(ITEMS, N, ACTIONS, VALUES, TASK_NAMES)


def with_noise(init) -> dict:
    """Fresh parameters plus noise that makes every table matter, by one program."""

    @jax.jit
    def start():
        leaves, tree = jax.tree.flatten(init(jax.random.key(0)))
        keys = jax.random.split(jax.random.key(1), len(leaves))
        pairs = zip(leaves, keys, strict=True)
        return jax.tree.unflatten(tree, [a + 0.3 * jax.random.normal(k, a.shape) for a, k in pairs])

    return start()


@functools.cache
def model_of(**changes):
    """Structure and params with biases large enough to matter."""
    graphdef, init = make_model(dataclasses.replace(SMALL, **changes), SIZES)
    return graphdef, with_noise(init)


def extend(model, batch: Batch, store: kv_cache.KvCache):
    """Hidden states of the tokens that follow, and the cache with them."""
    hidden, new = kv_cache.delta(model, batch, store)
    return hidden, kv_cache.write(store, new)


@functools.cache
def programs(**changes):
    """Jitted whole forward, prefill, extend and peek of a model."""
    graphdef, params = model_of(**changes)
    on_model = lambda function: jax.jit(
        lambda params, *args: function(nnx.merge(graphdef, params), *args)
    )
    parts = (lambda model, batch: model.hidden(batch), kv_cache.prefill, extend, kv_cache.peek)
    return [functools.partial(on_model(part), params) for part in parts]


def history(seed: int, tokens: int) -> list[dict]:
    """A random sequence of exactly so many tokens; each asks about a time of its own."""
    rng = np.random.default_rng(seed)
    sequence = random_sequence(rng, contexts=2, events=N, candidates=0)[:tokens]
    for t in sequence:
        t["query_time"] = t["time"] + int(rng.integers(0, 10**6))
    return sequence


def cut(batch: Batch, lo: int, hi: int) -> Batch:
    return jax.tree.map(lambda x: x[:, lo:hi], batch)


def first(batch: Batch, n: int) -> Batch:
    """The first tokens of each row, the others turned to padding."""
    mask = lambda x: (jnp.arange(x.shape[1]) < n).reshape(1, -1, *[1] * (x.ndim - 2))
    return jax.tree.map(lambda x: jnp.where(mask(x), x, jnp.zeros_like(x)), batch)


@pytest.mark.parametrize(
    "variant",
    [{}, {"bias": "time", "use_query_time": False}, {"bias": "none"}, {"window": 3}],
    ids=str,
)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_appending_in_any_pieces_gives_the_hidden_states_of_one_forward(variant, data):
    whole, prefill, extend, _ = programs(**variant)
    n = data.draw(st.integers(0, N), label="tokens")
    start = data.draw(st.integers(0, n), label="tokens of the first forward")
    batch = one_per_row([history(data.draw(st.integers(0, 99), label="seed"), n)], (1, ROOM))
    expected = np.asarray(whole(batch))[0, :n]

    hidden, store = prefill(first(batch, start))
    found = [np.asarray(hidden)[0, :start]]
    while start < n:
        size = data.draw(st.sampled_from([s for s in (1, 2, 5) if start + s <= n]), label="piece")
        hidden, store = extend(cut(batch, start, start + size), store)
        found.append(np.asarray(hidden)[0])
        start += size
    assert int(store.length[0]) == n
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [{}, {"window": 3}], ids=str)
@settings(max_examples=6, deadline=None)
@given(lengths=st.lists(st.integers(0, N), min_size=2, max_size=2), seed=st.integers(0, 99))
def test_candidates_that_peek_get_the_hidden_states_of_one_forward(variant, lengths, seed):
    whole, prefill, _, peek = programs(**variant)
    rng = np.random.default_rng(seed)
    histories = [history(seed + row, n) for row, n in enumerate(lengths)]
    tails = [
        random_sequence(rng, contexts=0, events=1, candidates=CANDIDATES)[-CANDIDATES:]
        for _ in lengths
    ]
    for before, tail in zip(histories, tails, strict=True):
        last = max((t["time"] for t in before), default=0)
        for t in tail:
            t |= {"position": len(before), "time": last + 5, "query_time": last + 7}
    expected = whole(one_per_row([a + b for a, b in zip(histories, tails, strict=True)], (2, ROOM)))
    _, store = prefill(one_per_row(histories, (2, ROOM)))
    found = peek(one_per_row(tails, (2, CANDIDATES)), store)
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(
            found[row], expected[row, n : n + CANDIDATES], atol=1e-5, rtol=1e-5
        )


def test_a_cache_in_bfloat16_is_half_as_large_and_close():
    graphdef, params = model_of()
    whole, _, extend, peek = programs()
    batch = one_per_row([history(3, 12)], (1, ROOM))
    _, store = kv_cache.prefill(nnx.merge(graphdef, params), first(batch, 10), storage="bfloat16")
    assert {x.dtype.name for x in (*store.k, *store.v)} == {"bfloat16"}
    hidden, store = extend(cut(batch, 10, 12), store)
    assert {x.dtype.name for x in (*store.k, *store.v)} == {"bfloat16"}
    expected = np.asarray(whole(batch))[0, 10:12]
    assert np.abs(hidden[0] - expected).max() < 0.02 * np.abs(expected).max()


def test_a_model_that_computes_in_bfloat16_keeps_its_cache_so_and_stays_close():
    whole, prefill, extend, peek = programs(compute_dtype="bfloat16")
    batch = one_per_row([history(4, 12)], (1, ROOM))
    expected = np.asarray(whole(batch).astype(jnp.float32))[0, 10:12]
    _, store = prefill(first(batch, 10))
    assert {x.dtype.name for x in (*store.k, *store.v)} == {"bfloat16"}
    hidden = [peek(cut(batch, 10, 11), store), extend(cut(batch, 10, 12), store)[0]]
    for found in hidden:
        assert found.dtype == jnp.bfloat16
        rows = np.asarray(found.astype(jnp.float32))[0]
        assert np.abs(rows - expected[: len(rows)]).max() < 0.02 * np.abs(expected).max()


def test_other_models_than_hstu_are_refused():
    graphdef, init = make_model(
        dataclasses.replace(SMALL, kind="sasrec", swiglu_width=0), ModelSizes(ITEMS, N)
    )
    batch = one_per_row([history(0, 3)], (1, 4))
    bare = Batch(batch.item, batch.time, batch.query_time, batch.position, batch.segment)
    with pytest.raises(ValueError, match="only HSTU models can be cached, not 'sasrec'"):
        kv_cache.prefill(nnx.merge(graphdef, init(jax.random.key(0))), bare)
