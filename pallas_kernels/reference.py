"""The specification of HSTU attention: dense [R, H, L, L] scores, as short as possible.

Computed in float32, or in float64 for float64 inputs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.masks import allowed_pairs, describe_tokens, pair_bias


def reference_attention(
    q: Float[Array, "R L H A"],
    k: Float[Array, "R L H A"],
    v: Float[Array, "R L H V"],
    segments: Int[Array, "R L"],
    *,
    max_length: int,
    scale: float = 1.0,
    position_table: Float[Array, " P"] | None = None,
    time_table: Float[Array, " buckets"] | None = None,
    query_times: Int[Array, "R L"] | None = None,
    key_times: Int[Array, "R L"] | None = None,
    targets: Bool[Array, "R L"] | None = None,
    contexts: Bool[Array, "R L"] | None = None,
    window: int | None = None,
    full_window_tail: int = 0,
) -> Float[Array, "R L H V"]:
    """Returns sum_j mask_ij SiLU(scale q_i.k_j + bias_ij) / N v_j; arguments as in `pallas_kernels.hstu_attention`."""
    tokens = describe_tokens(segments, targets, contexts, full_window_tail=full_window_tail)
    query, key = (
        jax.tree.map(lambda x: x[:, :, None], tokens),
        jax.tree.map(lambda x: x[:, None, :], tokens),
    )
    times = (query_times, key_times)
    if query_times is not None and key_times is not None:
        times = query_times[:, :, None], key_times[:, None, :]
    bias = pair_bias(query, key, position_table, time_table, *times)
    mask = allowed_pairs(query, key, window)
    wide = jnp.promote_types(v.dtype, jnp.float32)
    q_, k_, v_ = (jnp.where(segments[..., None, None] == 0, 0, x).astype(wide) for x in (q, k, v))
    scores = scale * jnp.einsum("rihA,rjhA->hrij", q_, k_, precision="highest") + bias
    weights = jnp.where(mask, jax.nn.silu(scores), 0) / max_length
    out = jnp.einsum("hrij,rjhV->rihV", weights, v_, precision="highest").astype(v.dtype)
    return jnp.where(segments[..., None, None] == 0, 0, out)
