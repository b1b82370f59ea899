"""The specification of HSTU attention: dense [R, H, L, L] scores, as short as possible.

Computed in float32, or in float64 for float64 inputs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.arguments import Bias, Mask, Options
from pallas_kernels.masks import allowed_pairs, describe_tokens, pair_bias


def reference_attention(
    q: Float[Array, "R L H A"],
    k: Float[Array, "R L H A"],
    v: Float[Array, "R L H V"],
    mask: Mask,
    bias: Bias,
    options: Options,
) -> Float[Array, "R L H V"]:
    """sum_j mask_ij SiLU(scale q_i.k_j + bias_ij) / N v_j, and 0 at padding."""
    tokens = describe_tokens(mask)
    query = jax.tree.map(lambda x: x[:, :, None], tokens)
    key = jax.tree.map(lambda x: x[:, None, :], tokens)
    padding = mask.segments[..., None, None] == 0

    wide = jnp.promote_types(v.dtype, jnp.float32)
    q_, k_, v_ = (jnp.where(padding, 0, x).astype(wide) for x in (q, k, v))
    scores = options.scale * jnp.einsum("rihA,rjhA->hrij", q_, k_, precision="highest")
    scores += pair_bias(query, key, bias)
    allowed = allowed_pairs(query, key, mask.window)
    weights = jnp.where(allowed, jax.nn.silu(scores), 0) / options.max_length
    out = jnp.einsum("hrij,rjhV->rihV", weights, v_, precision="highest").astype(v.dtype)
    return jnp.where(padding, 0, out)
