"""The next-item losses against dense float64 oracles and the reference vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gr_jax.config import LossConfig
from gr_jax.training.retrieval.losses import (
    full_softmax,
    next_item_loss,
    sampled_softmax,
)
from gr_jax.training.retrieval.negatives import draw_negatives, sample_negatives

R, L, D, NUM_ITEMS, ROWS, TEMPERATURE = 3, 12, 8, 37, 48, 0.05
KEY = jax.random.key(5)


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def make_batch(seed=0, *, rows=R, length=L):
    """Random hidden, item_table, labels and fractional weights.

    A third of the tokens has no label.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, NUM_ITEMS + 1, (rows, length)) * (rng.random((rows, length)) < 0.67)
    hidden = unit(rng.normal(size=(rows, length, D))).astype(np.float32)
    table = rng.normal(size=(ROWS, D)).astype(
        np.float32
    )  # padding rows are not zero, so that their use shows
    weights = (rng.uniform(0.2, 2, labels.shape) * (labels > 0)).astype(np.float32)
    return tuple(map(jnp.asarray, (hidden, table, labels.astype(np.int32), weights)))


def make_negatives(groups, count=6, seed=1):
    return jnp.asarray(
        np.random.default_rng(seed).integers(1, NUM_ITEMS + 1, (R, groups, count)), jnp.int32
    )


def loss_of_key(hidden, table, labels, weights, key, *, config, num_items, **options):
    """The loss over the negatives that the key draws."""
    negatives = draw_negatives(key, labels, weights, config=config, num_items=num_items)
    return next_item_loss(
        hidden, table, labels, weights, negatives, config=config, num_items=num_items, **options
    )


def oracle(hidden, table, labels, weights, negatives=None, *, temperature=TEMPERATURE, log_q=None):
    """Loss and gradients in float64 with every logit in memory.

    negatives: None is the whole catalogue.
    """
    hidden, table, weights = (np.asarray(a, np.float64) for a in (hidden, table, weights))
    labels = np.asarray(labels)
    rows, length = labels.shape
    if negatives is None:
        candidates = np.broadcast_to(np.arange(1, NUM_ITEMS + 1), (rows, length, NUM_ITEMS))
    else:
        candidates = np.repeat(negatives, length // negatives.shape[1], axis=1)
    candidates = np.concatenate([labels[..., None], candidates], axis=-1)
    items = unit(table)[candidates]
    logits = np.einsum("rld,rlkd->rlk", hidden, items) / temperature
    if log_q is not None:
        logits = logits - np.asarray(log_q, np.float64)[candidates]
    logits[..., 1:][(candidates[..., 1:] == labels[..., None]) | (candidates[..., 1:] == 0)] = -5e4
    peak = logits.max(-1, keepdims=True)
    p = np.exp(logits - peak)
    log_sum = np.log(p.sum(-1)) + peak[..., 0]
    p /= p.sum(-1, keepdims=True)
    share = weights / max(weights.sum(), 1e-300)
    p[..., 0] -= 1
    grad_logits = p * share[..., None] / temperature
    grad_items = np.zeros_like(table)
    np.add.at(grad_items, candidates, grad_logits[..., None] * hidden[:, :, None])
    norm, direction = np.maximum(np.linalg.norm(table, axis=-1, keepdims=True), 1e-6), unit(table)
    grad_table = (grad_items - direction * np.sum(grad_items * direction, -1, keepdims=True)) / norm
    return (
        np.sum(share * (log_sum - logits[..., 0])),
        np.einsum("rlk,rlkd->rld", grad_logits, items),
        grad_table,
    )


def value_and_grads(loss, hidden, table, *rest, **kwargs):
    value, grads = jax.jit(jax.value_and_grad(lambda h, t: loss(h, t, *rest, **kwargs), (0, 1)))(
        hidden, table
    )
    return float(value), np.asarray(grads[0], np.float64), np.asarray(grads[1], np.float64)


def assert_same(got, expected, atol=1e-5):
    for name, a, b in zip(("loss", "grad_hidden", "grad_table"), got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol, err_msg=name)


def full(*args, temperature=TEMPERATURE, **kwargs):
    return full_softmax(*args, num_items=NUM_ITEMS, temperature=temperature, **kwargs)


def sampled(*args, temperature=TEMPERATURE, **kwargs):
    return sampled_softmax(*args, temperature=temperature, **kwargs)


@pytest.mark.parametrize("temperature", [0.05, 0.01, 1.0])  # 0.01 takes the row maximum
def test_full_softmax_equals_the_dense_oracle(temperature):
    batch = make_batch()
    got = value_and_grads(full, *batch, temperature=temperature)
    assert_same(got, oracle(*batch, temperature=temperature), atol=2e-6 / temperature)
    assert not got[2][NUM_ITEMS + 1 :].any() and not got[2][0].any()


# 300 negatives: a table of few rows per negative is normalised before the gather. 0.01: as above.
@pytest.mark.parametrize(
    ("groups", "count", "temperature"),
    [(L, 6, 0.05), (4, 6, 0.05), (1, 6, 0.01), (L, 300, 0.01), (4, 300, 0.05)],
)
def test_sampled_softmax_equals_the_dense_oracle(groups, count, temperature):
    batch, negatives = make_batch(), make_negatives(groups, count)
    got = value_and_grads(sampled, *batch, negatives, temperature=temperature)
    assert_same(got, oracle(*batch, negatives, temperature=temperature), atol=2e-6 / temperature)


def test_smoothing_is_the_mean_of_the_losses_with_each_item_for_a_label():
    hidden, table, labels, weights = make_batch()
    got = value_and_grads(full, hidden, table, labels, weights, smoothing=0.25)
    of_label = oracle(hidden, table, labels, weights)
    of_items = [
        oracle(hidden, table, np.where(labels > 0, item, 0), weights)
        for item in range(1, NUM_ITEMS + 1)
    ]
    parts = zip(of_label, *of_items, strict=True)
    wanted = [0.75 * first + 0.25 * np.mean(others, axis=0) for first, *others in parts]
    assert_same(got, wanted, atol=4e-5)


def test_log_q_is_subtracted_from_labels_and_negatives():
    batch, negatives = make_batch(), make_negatives(4)
    log_q = jnp.log(jnp.asarray(np.random.default_rng(3).dirichlet(np.ones(ROWS)), jnp.float32))
    got = value_and_grads(sampled, *batch, negatives, item_log_q=log_q)
    assert_same(got, oracle(*batch, negatives, log_q=log_q), atol=1e-4)
    constant = value_and_grads(sampled, *batch, negatives, item_log_q=jnp.full(ROWS, -3.0))
    assert_same(constant, oracle(*batch, negatives), atol=1e-4)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 60), st.sampled_from([12, 7, 1]), st.sampled_from([None, 1, 3]))
def test_the_chunk_size_changes_nothing(chunk_tokens, length, group):
    batch = make_batch(length=length)
    if group is None:
        assert_same(value_and_grads(full, *batch, chunk_tokens=chunk_tokens), oracle(*batch))
    else:
        negatives = make_negatives(length // group if length % group == 0 else 1)
        got = value_and_grads(sampled, *batch, negatives, chunk_tokens=chunk_tokens)
        assert_same(got, oracle(*batch, negatives))


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [("full", "uniform"), ("group", "uniform"), ("group", "in_batch"), ("per_token", "uniform")],
)
def test_next_item_loss_is_the_loss_over_the_negatives_of_its_key(kind, sampler):
    batch = make_batch()
    config = LossConfig(kind=kind, sampler=sampler, negatives=7, group=4)
    loss = lambda *a: loss_of_key(
        *a, KEY, config=config, num_items=NUM_ITEMS, temperature=TEMPERATURE
    )
    groups = {"full": None, "group": L // 4, "per_token": L}[kind]
    negatives = groups and np.asarray(
        sample_negatives(
            KEY, batch[2], batch[3], groups=groups, count=7, sampler=sampler, num_items=NUM_ITEMS
        )
    )
    assert_same(value_and_grads(loss, *batch), oracle(*batch, negatives))


def test_log_q_applies_to_in_batch_negatives_only_and_needs_frequencies():
    batch, log_q = make_batch(), jnp.linspace(-5, -1, ROWS)

    def loss(item_log_q, **kwargs):
        config = LossConfig(kind="per_token", negatives=4, **kwargs)
        return loss_of_key(
            *batch,
            KEY,
            config=config,
            num_items=NUM_ITEMS,
            temperature=TEMPERATURE,
            item_log_q=item_log_q,
        )

    assert loss(log_q, log_q=True) == loss(None)
    assert loss(log_q, sampler="in_batch") == loss(None, sampler="in_batch")
    assert loss(log_q, sampler="in_batch", log_q=True) != loss(None, sampler="in_batch")
    with pytest.raises(ValueError, match="item_log_q"):
        loss(None, sampler="in_batch", log_q=True)


def test_a_group_that_does_not_divide_the_row_is_refused():
    config = LossConfig(kind="group", group=5)
    with pytest.raises(ValueError, match="loss.group=5"):
        loss_of_key(*make_batch(), KEY, config=config, num_items=NUM_ITEMS, temperature=TEMPERATURE)


@pytest.mark.parametrize("kind", ["full", "group"])
def test_padding_rows_and_tokens_without_weight_change_nothing(kind):
    hidden, table, labels, weights = make_batch()
    config = LossConfig(kind=kind, negatives=7, group=4)

    def loss(*args):
        return loss_of_key(*args, KEY, config=config, num_items=NUM_ITEMS, temperature=TEMPERATURE)

    before = value_and_grads(loss, hidden, table, labels, weights)
    table = table.at[0].set(1e3).at[NUM_ITEMS + 1 :].set(-7.0)
    hidden = jnp.where(weights[..., None] == 0, D**-0.5, hidden)
    assert_same(value_and_grads(loss, hidden, table, labels, weights), before, atol=1e-7)


@pytest.mark.parametrize("kind", ["full", "group"])
def test_a_batch_without_weights_has_loss_and_gradients_zero(kind):
    hidden, table, labels, _ = make_batch()
    table = table.at[0].set(0)
    config = LossConfig(kind=kind, negatives=7, group=4, sampler="in_batch")

    def loss(*args):
        return loss_of_key(*args, KEY, config=config, num_items=NUM_ITEMS, temperature=TEMPERATURE)

    for a in value_and_grads(loss, hidden, table, 0 * labels, jnp.zeros(labels.shape)):
        np.testing.assert_array_equal(a, 0)


@pytest.mark.parametrize("kind", ["full", "group"])
def test_the_loss_scales_its_gradients_by_the_cotangent_and_has_the_same_value_without_them(kind):
    batch = make_batch()
    config = LossConfig(kind=kind, negatives=7, group=4)

    def loss(*args):
        return loss_of_key(*args, KEY, config=config, num_items=NUM_ITEMS, temperature=TEMPERATURE)

    value, *grads = value_and_grads(loss, *batch)
    assert float(loss(*batch)) == pytest.approx(value, rel=1e-6)
    _, *scaled = value_and_grads(lambda *a: -3 * loss(*a), *batch)
    assert_same((0, *scaled), (0, *(-3 * g for g in grads)))


@pytest.mark.parametrize("kind", ["full", "group"])
def test_bfloat16_hidden_gives_a_float32_loss_near_the_exact_one(kind):
    hidden, table, labels, weights = make_batch()
    hidden = hidden.astype(jnp.bfloat16)
    config = LossConfig(kind=kind, negatives=7, group=4)
    loss = lambda *a: loss_of_key(
        *a, KEY, config=config, num_items=NUM_ITEMS, temperature=TEMPERATURE
    )
    value, (grad_hidden, grad_table) = jax.value_and_grad(loss, (0, 1))(
        hidden, table, labels, weights
    )
    exact = value_and_grads(loss, hidden.astype(jnp.float32), table, labels, weights)
    assert (value.dtype, grad_hidden.dtype, grad_table.dtype) == (
        jnp.float32,
        jnp.bfloat16,
        jnp.float32,
    )
    assert float(value) == pytest.approx(exact[0], rel=0.01)
    np.testing.assert_allclose(
        np.asarray(grad_hidden, np.float32), exact[1], atol=0.03 * abs(exact[1]).max()
    )
    np.testing.assert_allclose(grad_table, exact[2], atol=0.03 * abs(exact[2]).max())


def memory_of(kind, *, gradients, num_items=20_000, tokens=2048, chunk_tokens=64, width=8):
    """Temporary bytes of the compiled loss, or of its gradient."""
    config = LossConfig(kind=kind, negatives=64, group=16, chunk_tokens=chunk_tokens)

    def loss(hidden, table, labels, weights):
        return loss_of_key(
            hidden,
            table,
            labels,
            weights,
            KEY,
            config=config,
            num_items=num_items,
            temperature=TEMPERATURE,
        )

    shapes = [
        jax.ShapeDtypeStruct((2, tokens // 2, width), jnp.float32),
        jax.ShapeDtypeStruct((num_items + 1, width), jnp.float32),
        jax.ShapeDtypeStruct((2, tokens // 2), jnp.int32),
        jax.ShapeDtypeStruct((2, tokens // 2), jnp.float32),
    ]
    compiled = jax.jit(jax.grad(loss, (0, 1)) if gradients else loss).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("gradients", [False, True])
def test_the_logits_of_all_tokens_are_never_in_memory(gradients):
    all_logits = 2048 * 20_000 * 4
    assert memory_of("full", gradients=gradients) < all_logits / 8
    all_gathered = 2048 * 64 * 64 * 4
    assert memory_of("per_token", gradients=gradients, num_items=1000, width=64) < all_gathered / 8


def test_a_large_table_gets_one_dense_gradient_and_no_other_copy():
    num_items = 500_000
    assert memory_of("group", gradients=True, num_items=num_items) < 0.5 * num_items * 8 * 4


@pytest.mark.parametrize(
    ("kind", "sampler"), [("full", "uniform"), ("group", "uniform"), ("per_token", "in_batch")]
)
def test_rows_over_eight_devices_give_the_loss_of_one(kind, sampler):
    batch = make_batch(rows=8)
    config = LossConfig(kind=kind, negatives=7, group=4, sampler=sampler, chunk_tokens=32)

    def loss(*args):
        return loss_of_key(*args, KEY, config=config, num_items=NUM_ITEMS, temperature=TEMPERATURE)

    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))
    over_rows = NamedSharding(mesh, PartitionSpec(("data", "model")))
    sharded = [jax.device_put(a, over_rows) for a in batch]
    step = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=(None, (over_rows, over_rows)))
    value, (grad_hidden, grad_table) = step(*sharded)
    assert_same((value, grad_hidden, grad_table), value_and_grads(loss, *batch), atol=1e-6)


@pytest.mark.parametrize("suffix", ["", "_fractional"])
@pytest.mark.parametrize(
    "repeat", [1, 40]
)  # repeats of the negatives choose how the table is normalised
def test_sampled_softmax_reproduces_the_reference_loss_and_gradients(golden, suffix, repeat):
    g = golden("sampled_softmax")
    hidden, table, labels, weights, negatives = reference_batch(g, f"weights{suffix}")
    if (
        repeat > 1
    ):  # the same tokens, often, in one row: same mean, same summed gradients of the table
        hidden, labels, weights, negatives = (
            jnp.tile(a, (1, repeat) + (1,) * (a.ndim - 2))
            for a in (hidden, labels, weights, negatives)
        )
    value, grad_hidden, grad_table = value_and_grads(
        sampled, hidden, table, labels, weights, negatives, temperature=float(g["temperature"])
    )
    grad_hidden = grad_hidden.reshape(repeat, *g["output_embeddings"].shape).sum(0)
    expected = (
        g[f"loss{suffix}"],
        g[f"grad_output_embeddings{suffix}"],
        g[f"grad_item_table{suffix}"],
    )
    for a, b in zip((value, grad_hidden, grad_table), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_sampled_softmax_reproduces_the_reference_loss_of_every_token(golden):
    g = golden("sampled_softmax")
    hidden, table, labels, _, negatives = reference_batch(g, "weights")
    one_token = jnp.eye(labels.size)[:, None]
    loss = lambda w: sampled(
        hidden, table, labels, w, negatives, temperature=float(g["temperature"])
    )
    np.testing.assert_allclose(
        jax.jit(jax.vmap(loss))(one_token), g["per_token_loss"], rtol=0, atol=1e-5
    )


def reference_batch(g, weights):
    """The reference arrays as one row of tokens."""
    names = ("output_embeddings", "supervision_ids", weights, "negative_ids")
    hidden, labels, weights, negatives = (jnp.asarray(g[name][None]) for name in names)
    return hidden, jnp.asarray(g["item_table"]), labels, weights, negatives
