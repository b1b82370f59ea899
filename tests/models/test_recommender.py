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
from gr_jax.models import hstu
from gr_jax.models.recommender import Recommender, make_model
from gr_jax.models.sizes import ModelSizes
from tests.models import ranking_batch
from tests.models.golden_batch import padded_batch
from tests.models.test_kv_cache import with_noise

N, WIDTH, ITEMS = 12, 16, 40


def small(kind: str = "hstu", **changes) -> ModelConfig:
    config = ModelConfig(
        kind=kind, width=WIDTH, num_blocks=2, num_heads=2, qk_width=6, v_width=10, ffn_width=24
    )
    return dataclasses.replace(config, **{"swiglu_width": 9 if kind == "hstu" else 0} | changes)


def model_of(config: ModelConfig, **sizes):
    """Structure and params with biases large enough to matter."""
    graphdef, init = make_model(config, ModelSizes(**dict(num_items=ITEMS, max_length=N) | sizes))
    return graphdef, with_noise(init)


def place(
    sequences: list[dict], slots: list[tuple[int, int]], shape: tuple[int, int], noise: int = 0
) -> Batch:
    """A packed batch with each sequence at its (row, column); `noise` fills fields of padding."""
    rng = np.random.default_rng(noise)
    names = [f.name for f in dataclasses.fields(Batch) if f.default is dataclasses.MISSING] + [
        "label"
    ]
    fields = {name: np.zeros(shape, np.int32) for name in names}
    if noise:
        for name in ("time", "query_time"):
            fields[name] = rng.integers(0, 1000, shape).astype(np.int32)
    for number, (sequence, (row, column)) in enumerate(zip(sequences, slots, strict=True), 1):
        at = slice(column, column + len(sequence["item"]))
        for name, values in sequence.items():
            fields[name][row, at] = values
        fields["segment"][row, at] = number
    return Batch(**{name: jnp.asarray(values) for name, values in fields.items()})


def random_sequences(lengths: list[int], seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    sequences = []
    for n in lengths:
        times = np.cumsum(rng.integers(0, 10**6, n + 1))
        items = rng.integers(1, ITEMS + 1, n + 1)
        sequences.append(
            dict(
                item=items[:n],
                label=items[1:],
                time=times[:n],
                query_time=times[1:],
                position=np.arange(n),
            )
        )
    return sequences


def next_fit(lengths: list[int], row_length: int) -> list[tuple[int, int]]:
    """(row, column) of each sequence, with a gap of one token here and there."""
    slots, row, column = [], 0, 0
    for i, n in enumerate(lengths):
        if column + n > row_length:
            row, column = row + 1, 0
        slots.append((row, column))
        column += n + i % 2
    return slots


@pytest.mark.parametrize("kind", ["hstu", "sasrec"])
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(1, N), min_size=1, max_size=8), seed=st.integers(0, 100))
def test_packed_rows_give_the_outputs_and_gradients_of_one_user_per_row(kind, lengths, seed):
    graphdef, params = model_of(small(kind))
    sequences = random_sequences(lengths, seed)
    slots = next_fit(lengths, 24)
    shape = (8, 24)  # static, so that the jitted function is compiled once
    packed = place(sequences, slots, shape)
    padded_slots = [(row, 0) for row in range(len(lengths))]
    padded = place(sequences, padded_slots, (8, N))
    cotangent = np.random.default_rng(seed).normal(size=(len(lengths), N, WIDTH))
    # In float64, where a bound can be tight: a layer norm of tokens that hardly differ multiplies
    # the rounding of a gradient by a thousand.
    with jax.enable_x64(True):
        graphdef, params = in_float64(small(kind)), jax.tree.map(np.float64, params)
        results = [
            outputs_and_gradients(graphdef, params, packed, slots, lengths, cotangent),
            outputs_and_gradients(graphdef, params, padded, padded_slots, lengths, cotangent),
        ]
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        assert a.dtype == b.dtype == np.float64
        np.testing.assert_allclose(a, b, atol=1e-10 * max(1.0, float(np.abs(b).max())))


@functools.cache
def in_float64(config: ModelConfig):
    """The structure of a model that computes in float64, which a config does not offer."""
    config = dataclasses.replace(config, attention="reference" if config.kind == "hstu" else "")
    object.__setattr__(config, "compute_dtype", "float64")
    return make_model(config, ModelSizes(ITEMS, N))[0]


def outputs_and_gradients(graphdef, params, batch, slots, lengths, cotangent):
    weights = np.zeros((*batch.item.shape, WIDTH), cotangent.dtype)
    for (row, column), n, values in zip(slots, lengths, cotangent, strict=True):
        weights[row, column : column + n] = values[:n]
    out, grads = encode_and_grad(graphdef, params, batch, jnp.asarray(weights))
    return [
        np.asarray(out)[row, column : column + n]
        for (row, column), n in zip(slots, lengths, strict=True)
    ], grads


def encode_and_grad(graphdef, params, batch, weights):
    def scalar(params):
        out = nnx.merge(graphdef, params).encode(batch)
        return jnp.sum(out * weights), out

    grads, out = jax.grad(scalar, has_aux=True)(params)
    return out, grads


encode_and_grad = jax.jit(encode_and_grad, static_argnums=0)


@pytest.mark.parametrize("kind", ["hstu", "sasrec"])
def test_padding_and_neighbours_change_nothing(kind):
    graphdef, params = model_of(small(kind))
    ours, neighbour, other = random_sequences([7, 9, 9], 0)
    slots = [(0, 3), (0, 12)]
    encode = jax.jit(lambda batch: nnx.merge(graphdef, params).encode(batch))
    outs = [
        np.asarray(encode(place([ours, them], slots, (1, 24), noise)))[0, 3:10]
        for them, noise in ((neighbour, 0), (other, 0), (neighbour, 5))
    ]
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])


@pytest.mark.parametrize("kind", ["hstu", "sasrec"])
def test_future_items_do_not_change_past_outputs(kind):
    graphdef, params = model_of(small(kind))
    (sequence,) = random_sequences([9], 0)
    changed = {name: values.copy() for name, values in sequence.items()}
    changed["item"][6:] = changed["item"][6:] % ITEMS + 1
    before, after = (
        np.asarray(nnx.merge(graphdef, params).encode(place([s], [(0, 0)], (1, 12))))
        for s in (sequence, changed)
    )
    np.testing.assert_array_equal(before[0, :6], after[0, :6])
    assert np.abs(before[0, 6:9] - after[0, 6:9]).max() > 1e-3


@pytest.mark.parametrize("kind", ["hstu", "sasrec"])
def test_remat_and_scan_change_neither_outputs_nor_gradients(kind):
    _, params = model_of(small(kind))
    batch = place(random_sequences([7, 9, 12], 3), [(0, 0), (0, 8), (1, 2)], (2, 24))
    weights = jax.random.normal(jax.random.key(2), (2, 24, WIDTH))
    results = []
    for remat, scan in ((False, False), (True, False), (False, True), (True, True)):
        graphdef, _ = make_model(small(kind, remat=remat, scan_blocks=scan), ModelSizes(ITEMS, N))
        results.append(encode_and_grad(graphdef, params, batch, weights))
    for result in results[1:]:
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(results[0]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("scan", [False, True])
def test_dropout_needs_a_key_and_follows_it(scan):
    graphdef, params = model_of(small(scan_blocks=scan))
    batch = place(random_sequences([12], 3), [(0, 0)], (1, 12))
    model = nnx.merge(graphdef, params)
    a, b, c = (
        np.asarray(model.encode(batch, key=key))
        for key in (jax.random.key(0), jax.random.key(0), jax.random.key(1))
    )
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-2
    assert np.abs(a - np.asarray(model.encode(batch))).max() > 1e-2


def test_bfloat16_compute_keeps_float32_parameters_and_stays_close():
    graphdef, params = model_of(small(compute_dtype="bfloat16"))
    exact, _ = model_of(small())
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(params))
    batch = place(random_sequences([12], 3), [(0, 0)], (1, 12))
    close = nnx.merge(graphdef, params).encode(batch)
    assert close.dtype == jnp.float32
    np.testing.assert_allclose(close, nnx.merge(exact, params).encode(batch), atol=0.05)


def test_outputs_are_unit_vectors_and_zero_at_padding():
    graphdef, params = model_of(small())
    batch = place(random_sequences([5], 3), [(0, 2)], (1, 12))
    norms = np.linalg.norm(nnx.merge(graphdef, params).encode(batch), axis=-1)[0]
    np.testing.assert_allclose(norms, [0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], atol=1e-5)


def test_encoder_equals_the_reference_implementation(golden):
    g = golden("hstu_encoder")
    num_items, n = g["item_table"].shape[0] - 1, g["pos_table"].shape[0]
    heads, dqk, dv = (int(g[name]) for name in ("num_heads", "dqk", "dv"))
    width, blocks = g["item_table"].shape[1], sum(name.endswith("_uvqk") for name in g)
    config = ModelConfig(width=width, num_blocks=blocks, num_heads=heads, qk_width=dqk, v_width=dv)
    model = Recommender(config, ModelSizes(num_items, n), rngs=nnx.Rngs(0))
    model.embeddings.item_table[...] = (
        model.embeddings.item_table[...].at[: num_items + 1].set(g["item_table"])
    )
    model.embeddings.position_table[...] = g["pos_table"]
    for i, block in enumerate(model.blocks):
        block.uvqk[...] = g[f"layer{i}_uvqk"]
        block.output.kernel[...] = g[f"layer{i}_o_w"]
        block.output.bias[...] = g[f"layer{i}_o_b"]
        block.bias.position[...] = g[f"layer{i}_pos_w"][:n][::-1]
        block.bias.time[...] = g[f"layer{i}_ts_w"]
    batch = padded_batch(g["item_ids"], g["lengths"], g["timestamps"])
    out = model.encode(batch)
    np.testing.assert_allclose(out, g["output"], atol=1e-5)
    np.testing.assert_allclose(
        out[np.arange(len(out)), g["lengths"] - 1], g["last_output"], atol=1e-5
    )


MAX_TOKENS = 24


@functools.cache
def make_ranker(**changes):
    return model_of(
        small(head_width=20, **changes),
        max_length=MAX_TOKENS,
        num_actions=ranking_batch.ACTIONS,
        num_feature_values=ranking_batch.VALUES,
        tasks=ranking_batch.TASK_NAMES,
    )


@functools.partial(jax.jit, static_argnums=0)
def rank(graphdef, params, batch):
    return nnx.merge(graphdef, params).rank(batch)


@functools.partial(jax.jit, static_argnums=0)
def rank_and_grad(graphdef, params, batch, weights):
    def scalar(params):
        logits = nnx.merge(graphdef, params).rank(batch)
        return jnp.sum(logits * weights), logits

    grads, logits = jax.grad(scalar, has_aux=True)(params)
    return logits, grads


@settings(max_examples=8, deadline=None)
@given(
    users=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=6),
    seed=st.integers(0, 100),
)
def test_packed_rows_give_the_logits_and_gradients_of_one_user_per_row(users, seed):
    graphdef, params = make_ranker(attention="xla")
    rng = np.random.default_rng(seed)
    sequences = [
        ranking_batch.random_sequence(rng, contexts=c, events=1 + e, candidates=m)
        for c, e, m in users
    ]
    lengths = [len(sequence) for sequence in sequences]
    results = []
    for slots, shape in (
        (next_fit(lengths, 48), (6, 48)),
        ([(row, 0) for row in range(len(lengths))], (6, MAX_TOKENS)),
    ):
        batch = ranking_batch.place(sequences, slots, shape)
        weights = np.zeros((*shape, ranking_batch.TASKS), np.float32)
        for (row, column), n in zip(slots, lengths, strict=True):
            weights[row, column : column + n] = np.random.default_rng(n).normal(
                size=(n, ranking_batch.TASKS)
            )
        logits, grads = rank_and_grad(graphdef, params, batch, weights)
        logits = [
            logits[row, column : column + n]
            for (row, column), n in zip(slots, lengths, strict=True)
        ]
        results.append((logits, grads))
    # Gradients to 1e-4, as the reference vectors: where a token sees one or two, LN divides by a
    # tiny deviation.
    for (packed, padded), rtol in zip(zip(*results, strict=True), (1e-7, 1e-4), strict=True):
        for a, b in zip(jax.tree.leaves(packed), jax.tree.leaves(padded), strict=True):
            np.testing.assert_allclose(
                a, b, rtol=rtol, atol=1e-5 * max(1.0, float(np.abs(b).max()))
            )


def history_and_candidates(seed: int, count: int):
    rng = np.random.default_rng(seed)
    tokens = ranking_batch.random_sequence(rng, contexts=2, events=6, candidates=count)
    return tokens[:-count], tokens[-count:]


# 100 candidates make the sequence longer than `max_length`, and the row longer than one chunk of
# the XLA implementation.
@pytest.mark.parametrize("attention", ["reference", "xla"])
@settings(max_examples=5, deadline=None)
@given(
    count=st.sampled_from([1, 7, 100]),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 100),
)
def test_candidates_in_one_pass_in_any_order_score_as_each_alone(attention, count, order, seed):
    graphdef, params = make_ranker(attention=attention)
    history, candidates = history_and_candidates(seed, count)
    n = len(history)
    alone = ranking_batch.one_per_row([[*history, c] for c in candidates], (100, MAX_TOKENS))
    expected = np.asarray(rank(graphdef, params, alone))[:count, n]
    assert count == 1 or np.ptp(expected) > 0.1
    shuffled = order.sample(range(count), count)
    together = ranking_batch.one_per_row([[*history, *(candidates[i] for i in shuffled)]], (1, 128))
    np.testing.assert_allclose(
        rank(graphdef, params, together)[0, n : n + count], expected[shuffled], atol=1e-5
    )


GPU_STAGES = ("hstu_attention", "normalised_gate")


def test_candidates_score_as_each_alone_through_the_interpreted_triton_kernel(monkeypatch):
    interpreted = {
        name: functools.partial(getattr(hstu, name), interpret=True) for name in GPU_STAGES
    }
    history, candidates = history_and_candidates(3, 20)  # longer than `max_length`
    n = len(history)
    together = ranking_batch.one_per_row([[*history, *candidates]], (1, 48))
    alone = ranking_batch.one_per_row([[*history, c] for c in candidates[:3]], (3, MAX_TOKENS))
    graphdef, params = make_ranker(attention="xla", num_blocks=1)
    expected = rank(graphdef, params, together)[0, n : n + 20]
    for name, function in interpreted.items():
        monkeypatch.setattr(hstu, name, function)
    graphdef, _ = make_ranker(attention="pallas_triton", num_blocks=1)
    got = rank(graphdef, params, together)[0, n : n + 20]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(got[:3], rank(graphdef, params, alone)[:, n], atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(at=st.integers(0, 20), seed=st.integers(0, 100))
def test_a_changed_token_does_not_change_the_predictions_before_it(at, seed):
    graphdef, params = make_ranker(attention="xla")
    rng = np.random.default_rng(seed)
    sequence = ranking_batch.random_sequence(rng, contexts=3, events=4, candidates=6)
    at %= len(sequence)
    other = dict(sequence[at])
    for name, largest in (
        ("item", ITEMS),
        ("user_feature", ranking_batch.VALUES),
        ("action", 2**ranking_batch.ACTIONS),
    ):
        if other[name]:
            other[name] = other[name] % largest + (2 if name == "action" else 1)
    changed = [*sequence[:at], other, *sequence[at + 1 :]]
    before, after = (
        np.asarray(rank(graphdef, params, ranking_batch.one_per_row([s], (1, MAX_TOKENS)))[0])
        for s in (sequence, changed)
    )
    unchanged = np.arange(MAX_TOKENS) < at
    if sequence[at]["target"]:
        unchanged = np.arange(MAX_TOKENS) != at  # the other candidates neither
    np.testing.assert_array_equal(before[unchanged], after[unchanged])
    assert np.abs(before[at] - after[at]).max() > 1e-4


def test_labels_and_outcomes_are_no_input():
    graphdef, params = make_ranker(attention="xla")
    sequence = ranking_batch.random_sequence(
        np.random.default_rng(0), contexts=1, events=3, candidates=2
    )
    batch = ranking_batch.one_per_row([sequence], (1, MAX_TOKENS))
    ones = jnp.ones((1, MAX_TOKENS, ranking_batch.TASKS))
    told = dataclasses.replace(batch, label=batch.item, outcome=ones, outcome_weight=ones)
    np.testing.assert_array_equal(rank(graphdef, params, batch), rank(graphdef, params, told))


def test_a_model_without_tasks_has_no_head_and_says_so():
    graphdef, params = model_of(small())
    assert set(params) == {"embeddings", "blocks"} and set(params["embeddings"]) == {
        "item_table",
        "position_table",
    }
    with pytest.raises(ValueError, match=r"tasks=\(\)"):
        nnx.merge(graphdef, params).rank(place(random_sequences([5], 3), [(0, 2)], (1, 12)))
