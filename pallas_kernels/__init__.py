"""HSTU attention on packed rows: one op, several implementations, one reference.

    from pallas_kernels import hstu_attention, hstu_cached_attention

Usable without gr_jax. Dimension letters: R rows, L tokens in a row, H heads, A query and key width,
V value width, P position-table entries.
"""

from __future__ import annotations

from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.arguments import Options, backend_arguments
from pallas_kernels.cached.attention import hstu_cached_attention
from pallas_kernels.dispatch import IMPLEMENTATIONS
from pallas_kernels.masks import time_bucket

__all__ = ["IMPLEMENTATIONS", "hstu_attention", "hstu_cached_attention", "time_bucket"]


def hstu_attention(
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
    window: int | None = None,
    implementation: str | None = None,
    interpret: bool = False,
    row_axis: str = "data",
    head_axis: str = "model",
) -> Float[Array, "R L H V"]:
    """out_i = sum_j mask_ij * SiLU(scale * q_i.k_j + bias_ij) / N * v_j, and 0 at padding.

    Differentiable in q, k, v and both tables.

    Args:
      q, k, v: float32 or bfloat16 (sums and bias stay float32); the result has the dtype of v.
        Padding may hold NaN.
      segments: 0 = padding; each run of an equal non-zero id is one sequence. Sequences do not see
        one another.
      max_length: N, at least the tokens of the longest sequence with its targets. It is the fixed
        normaliser, and keys further away than this are not looked at.
      scale: multiplies q.k.
      position_table: bias by distance of the effective positions, clipped to [0, P - 1].
      time_table: bias by `time_bucket(query_times_i - key_times_j)`, clipped to the table; times
        are int32 seconds.
      targets: candidate tokens, at the end of their sequence; all share one effective position, so
        each sees the history and itself.
      window: longest distance of effective positions that a token sees; None = no limit.
      implementation: one of IMPLEMENTATIONS; None = the best one that can run on the device of the
        ambient mesh, or on JAX's default device.
      interpret: run a GPU kernel in its interpreter, on any device and slowly, to test it.
      row_axis, head_axis: axes of the ambient mesh (`jax.set_mesh`), where there is one, over which
        rows and heads are split: each device then works on its own part, with no communication but
        the sum of the tables' gradients.

    Raises:
      ValueError: arguments that do not fit together.
      NotImplementedError: the implementation cannot run here.

    Source: arXiv:2402.17152 section 3; the mask rules are those of its production implementation.
    """
    dispatch.check_arguments(implementation, IMPLEMENTATIONS, max_length, window)
    if time_table is not None and (query_times is None or key_times is None):
        raise ValueError("time_table needs query_times and key_times (int32 seconds)")
    for table_name, table in (("position_table", position_table), ("time_table", time_table)):
        if table is not None and len(table) == 0:
            raise ValueError(f"{table_name} is empty: pass None for no bias")

    width = max(q.shape[3], v.shape[3])
    name, interpret = dispatch.resolve(implementation, v.dtype.name, width, interpret)
    backend, options = dispatch.load(name), Options(max_length, scale, interpret)

    by_head = {"q": q, "k": k, "v": v}
    by_row = {"segments": segments, "targets": targets}
    by_row |= {"query_times": query_times, "key_times": key_times}
    whole = {"position_table": position_table, "time_table": time_table}
    attend = lambda **arrays: backend(*backend_arguments(arrays, window), options)
    return dispatch.per_shard(attend, by_head, by_row, whole, row_axis, head_axis)
