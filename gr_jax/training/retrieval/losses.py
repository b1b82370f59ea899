"""Next-item losses: the softmax over the catalogue, whole or against sampled negatives.

Item vectors are L2-normalised here and logits are dot / temperature. A loss is a scalar, so its
gradients are made in the forward pass, chunk by chunk, while the logits are still in the cache; the
backward pass only multiplies them by the cotangent. The logits of one chunk are all that is ever in
memory. A chunk takes some columns of every row, so that the rows can be sharded over a mesh.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gr_jax.config import LossConfig
from gr_jax.models.layers import l2_normalise
from gr_jax.models.lookup import add_entries, take_entries

# Logits up to this size need no maximum subtracted: exp(40) summed over any catalogue still is a
# float32 number.
_SAFE_LOGIT = 40.0
_COLLISION = -5e4  # logit of a negative that is the positive itself: its exponential is exactly 0


def next_item_loss(
    hidden: Float[Array, "R L D"],
    item_table: Float[Array, "*S rows D"],
    labels: Int[Array, "R L"],
    weights: Float[Array, "R L"],
    negatives: Int[Array, "R G K"] | None,
    *,
    config: LossConfig,
    num_items: int,
    temperature: float,
    item_log_q: Float[Array, "*S rows"] | None = None,
) -> Float[Array, ""]:
    """Weighted mean of -log p(label), natural log, as `config` says.

    Differentiable in `hidden` and `item_table`. `negatives` are those of `draw_negatives`.
    `item_log_q` holds the log probability that the sampler draws each item; it is used by
    sampler="in_batch" with log_q=True. The other arguments are those of `full_softmax` and, but for
    kind="full", `sampled_softmax`.

    Raises:
      ValueError: the correction has no `item_log_q`.
    """
    if config.kind == "full":
        return full_softmax(
            hidden,
            item_table,
            labels,
            weights,
            num_items=num_items,
            temperature=temperature,
            smoothing=config.smoothing,
            chunk_tokens=config.chunk_tokens,
        )

    assert negatives is not None, config.kind
    # A uniform correction shifts all logits alike.
    correct = config.log_q and config.sampler == "in_batch"
    if correct and item_log_q is None:
        raise ValueError(
            "loss.log_q=True with loss.sampler=in_batch needs item_log_q: item log frequencies"
        )
    return sampled_softmax(
        hidden,
        item_table,
        labels,
        weights,
        negatives,
        temperature=temperature,
        chunk_tokens=config.chunk_tokens,
        item_log_q=item_log_q if correct else None,
    )


def full_softmax(
    hidden: Float[Array, "R L D"],
    item_table: Float[Array, "rows D"],
    labels: Int[Array, "R L"],
    weights: Float[Array, "R L"],
    *,
    num_items: int,
    temperature: float,
    smoothing: float = 0.0,
    chunk_tokens: int = 512,
) -> Float[Array, ""]:
    """Weighted mean of -log softmax over items 1..num_items; 0 if no token has a weight.

    With `smoothing` s it is the cross-entropy with 1 - s of a label on its item and s spread evenly
    over all items (Szegedy et al. 2016, section 7).

    hidden: encoder outputs of at most unit length, float32 or bfloat16 (then logits and sums are
    float32). item_table: raw item vectors by id; entry 0 and entries above num_items are padding
    and take no part. labels: id of the next item, 0 = none (its weight must be 0). chunk_tokens:
    tokens in a chunk, at least R.
    """
    items = l2_normalise(item_table)
    share = _shares(weights)
    target = items[labels]
    if smoothing:
        real = _is_real(len(items), num_items)[:, None]
        target = (1 - smoothing) * target + smoothing / num_items * (items * real).sum(0)
    positive = jnp.sum(hidden * target, axis=-1) / temperature
    run = partial(
        _full_log_sums, num_items=num_items, temperature=temperature, chunk_tokens=chunk_tokens
    )
    return _with_forward_gradients(run, (hidden, items), (share,)) - jnp.sum(share * positive)


def sampled_softmax(
    hidden: Float[Array, "R L D"],
    item_table: Float[Array, "*S rows D"],
    labels: Int[Array, "R L"],
    weights: Float[Array, "R L"],
    negatives: Int[Array, "R G K"],
    *,
    temperature: float,
    chunk_tokens: int = 512,
    item_log_q: Float[Array, "*S rows"] | None = None,
) -> Float[Array, ""]:
    """Weighted mean of -log softmax over the label and K negatives; 0 if no token has a weight.

    negatives: ids; group g of a row serves its tokens g*L/G ... (g+1)*L/G - 1, so G = L means
    negatives for each token. A negative that equals a token's label, or is 0, does not count for
    that token; repeats count as often as they occur. item_log_q is subtracted from the logits of
    labels and negatives (logQ correction). A table [S, rows, D] is one for each of S equal parts of
    the rows R. The other arguments are those of `full_softmax`.

    Source: paper section 4.1.1 and its public code, which has G = L and no correction.
    """
    # Normalising the gathered vectors reads few entries of a large table; a small table is cheaper
    # normalised once.
    once = 4 * math.prod(item_table.shape[:-1]) <= negatives.size
    run = partial(
        _sampled_log_losses,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        normalise=(lambda x: x) if once else l2_normalise,
    )
    table = l2_normalise(item_table) if once else item_table
    return _with_forward_gradients(
        run, (hidden, table), (_shares(weights), labels, negatives, item_log_q)
    )


def _is_real(rows, num_items):
    """[rows] float32: 1 for the entries of items, 0 for padding."""
    ids = jnp.arange(rows)
    return ((ids >= 1) & (ids <= num_items)).astype(jnp.float32)


def _shares(weights):
    """Weights divided by their sum, all 0 if the sum is 0."""
    total = jnp.sum(weights, dtype=jnp.float32)
    return weights / jnp.where(total > 0, total, 1)


def _value(run, inputs, constants) -> Array:
    """The scalar of `run(*inputs, *constants, gradients) -> (scalar, gradients of the inputs)`."""
    return run(*inputs, *constants, gradients=False)[0]


def _forward(run, inputs, constants):
    return run(*inputs, *constants, gradients=True)


def _backward(run, gradients, cotangent):
    del run
    return jax.tree.map(lambda g: (g * cotangent).astype(g.dtype), gradients), None


_with_forward_gradients = jax.custom_vjp(_value, nondiff_argnums=(0,))
_with_forward_gradients.defvjp(_forward, _backward)


def _full_log_sums(hidden, items, share, *, num_items, temperature, chunk_tokens, gradients):
    """sum(share * log(sum over items of exp(logit))), and its gradients in `hidden` and `items`.

    items: unit vectors.
    """
    rows, width = items.shape
    real = _is_real(rows, num_items)
    items_low = items.astype(hidden.dtype)

    def chunk(grad_items, inputs):
        x, share = inputs[0].reshape(-1, width), inputs[1].reshape(-1)
        logits = _matmul(x, items_low.T) / temperature
        shift = _shift(jnp.where(real > 0, logits, -jnp.inf), temperature)
        exps = jnp.exp(logits - shift[:, None]) * real
        sums = jnp.sum(exps, axis=-1)
        value = jnp.sum(share * (jnp.log(sums) + shift))
        if not gradients:
            return grad_items, (value, None)
        scale = (share / (sums * temperature))[:, None]
        exps = exps.astype(x.dtype)
        grad_x = scale * _matmul(exps, items_low)
        # x^T exps and not exps^T x: the large matrix is read along its rows, 1.7 times as fast on
        # CPU.
        grad_items += _matmul((x * scale).astype(x.dtype).T, exps)
        return grad_items, (value, grad_x.reshape(inputs[0].shape))

    columns = _columns(hidden.shape, chunk_tokens)
    start = jnp.zeros((width, rows) if gradients else ())
    grad_items, (values, grad_hidden) = jax.lax.scan(
        chunk, start, (_split(hidden, columns), _split(share, columns))
    )
    if not gradients:
        return jnp.sum(values), None
    return jnp.sum(values), (_join(grad_hidden, hidden.shape).astype(hidden.dtype), grad_items.T)


def _sampled_log_losses(
    hidden,
    table,
    share,
    labels,
    negatives,
    log_q,
    *,
    temperature,
    chunk_tokens,
    normalise,
    gradients,
):
    """sum(share * -log p(label)), and its gradients in `hidden` and `table`.

    normalise: makes gathered vectors unit, where the table is raw.
    """
    group = hidden.shape[1] // negatives.shape[1]

    def gather(ids):
        vectors, pull = jax.vjp(normalise, take_entries(table, ids))
        return vectors.astype(hidden.dtype), lambda cotangent: pull(cotangent)[0]

    def correction(ids):
        if log_q is None:
            return 0.0
        return log_q[ids] if log_q.ndim == 1 else take_entries(log_q[..., None], ids)[..., 0]

    label_vectors, pull_labels = gather(labels)
    positive = jnp.einsum("rld,rld->rl", hidden, label_vectors, preferred_element_type=jnp.float32)
    positive = positive / temperature - correction(labels)

    def chunk(grad_table, inputs):
        ids = inputs[-1].reshape(-1, negatives.shape[2])
        x, share, label, positive = (a.reshape(-1, group, *a.shape[2:]) for a in inputs[:-1])
        vectors, pull = gather(ids)
        logits = jnp.einsum("ngd,nkd->ngk", x, vectors, preferred_element_type=jnp.float32)
        logits = logits / temperature - correction(ids[:, None])
        void = (ids[:, None] == label[..., None]) | (ids == 0)[:, None]
        logits = jnp.where(void, _COLLISION, logits)
        shift = jnp.maximum(
            _shift(logits, temperature, log_q), _shift(positive[..., None], temperature, log_q)
        )
        exps, positive_exp = jnp.exp(logits - shift[..., None]), jnp.exp(positive - shift)
        sums = jnp.sum(exps, axis=-1) + positive_exp

        value = jnp.sum(share * (jnp.log(sums) + shift - positive))
        if not gradients:
            return grad_table, (value, None, None)

        grad_logits = (exps * (share / (sums * temperature))[..., None]).astype(x.dtype)
        grad_x = jnp.einsum(
            "ngk,nkd->ngd", grad_logits, vectors, preferred_element_type=jnp.float32
        )
        grad_vectors = jnp.einsum(
            "ngk,ngd->nkd", grad_logits, x, preferred_element_type=jnp.float32
        )
        grad_table = add_entries(grad_table, ids, pull(grad_vectors))
        grad_positive = share * (positive_exp / sums - 1) / temperature
        return grad_table, (
            value,
            grad_x.reshape(inputs[0].shape),
            grad_positive.reshape(inputs[1].shape),
        )

    # Per token, a chunk gathers K x D numbers for each: a quarter of the tokens then fits in the
    # cache.
    groups = _columns(negatives.shape, max(1, chunk_tokens * min(group, 4) // (4 * group)))
    tokens = [_split(a, groups * group) for a in (hidden, share, labels, positive)]
    start = jnp.zeros(table.shape if gradients else ())
    grad_table, (values, grad_hidden, grad_positive) = jax.lax.scan(
        chunk, start, (*tokens, _split(negatives, groups))
    )
    if not gradients:
        return jnp.sum(values), None
    grad_positive = _join(grad_positive, labels.shape)[..., None]
    grad_hidden = _join(grad_hidden, hidden.shape) + grad_positive * label_vectors
    grad_table = add_entries(
        grad_table, labels, pull_labels(grad_positive * hidden.astype(jnp.float32))
    )
    return jnp.sum(values), (grad_hidden.astype(hidden.dtype), grad_table)


def _shift(logits, temperature, log_q=None):
    """Subtrahend of the logits of a token before exp: 0 if they are bounded, else their maximum."""
    if 1 / temperature <= _SAFE_LOGIT and log_q is None:
        return jnp.zeros(logits.shape[:-1])
    return jnp.max(logits, axis=-1)


def _matmul(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _columns(shape, chunk_tokens):
    """Columns of a chunk: about chunk_tokens / R, evened out over the chunks."""
    rows, length = shape[:2]
    chunks = -(-length // max(1, chunk_tokens // rows))
    return -(-length // chunks)


def _split(x, columns):
    """[R, L, ...] -> [chunks, R, columns, ...], padded with zeros."""
    rows, length, *rest = x.shape
    chunks = -(-length // columns)
    x = jnp.pad(x, [(0, 0), (0, chunks * columns - length)] + [(0, 0)] * len(rest))
    return jnp.moveaxis(x.reshape(rows, chunks, columns, *rest), 1, 0)


def _join(x, shape):
    """The inverse of `_split` for an array of `shape`."""
    chunks, rows, columns, *rest = x.shape
    return jnp.moveaxis(x, 0, 1).reshape(rows, chunks * columns, *rest)[:, : shape[1]]
