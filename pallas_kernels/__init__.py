"""HSTU attention on packed rows: one op, several implementations, one reference. Usable without gr_jax.

    from pallas_kernels import hstu_attention, hstu_cached_attention

Dimension letters: R rows, L tokens in a row, H heads, A query and key width, V value width, P position-table entries.
"""

from __future__ import annotations

import functools

from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import dispatch
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
    contexts: Bool[Array, "R L"] | None = None,
    window: int | None = None,
    full_window_tail: int = 0,
    implementation: str | None = None,
    interpret: bool = False,
    row_axis: str = "data",
    head_axis: str = "model",
) -> Float[Array, "R L H V"]:
    """Returns out_i = sum_j mask_ij * SiLU(scale * q_i.k_j + bias_ij) / N * v_j, and 0 at padding.

    q, k, v: float32 or bfloat16 (sums and bias stay float32); the result has the dtype of v. Padding may hold NaN.
    segments: 0 = padding; each run of an equal non-zero id is one sequence. Sequences do not see one another.
    max_length: N, at least the tokens of the longest sequence with its contexts and targets. It is the fixed
        normaliser, and keys further away than this are not looked at.
    scale: multiplies q.k.
    position_table: bias by distance of the effective positions, clipped to [0, P - 1].
    time_table: bias by `time_bucket(query_times_i - key_times_j)`, clipped to the table; times are int32 seconds.
    targets: candidate tokens, at the end of their sequence; all share one effective position, so each sees the
        history and itself.
    contexts: contextual-prefix tokens, at the start of their sequence; all share effective position 0 and see the
        whole history.
    window: longest distance of effective positions that a token sees; None = no limit.
    full_window_tail: the last so many history positions, and the targets, are exempt from the window.
    implementation: one of IMPLEMENTATIONS; None = the best one that can run on the device of the ambient mesh, or on
        JAX's default device.
    interpret: runs a GPU kernel in its interpreter, on any device and slowly, to test it.
    row_axis, head_axis: axes of the ambient mesh (`jax.set_mesh`), where there is one, over which rows and heads are
        split: each device then works on its own part, with no communication but the sum of the tables' gradients.
    Differentiable in q, k, v and both tables.
    Raises ValueError for arguments that do not fit together, NotImplementedError where an implementation cannot run.
    Source: arXiv:2402.17152 section 3; the mask rules are those of its production implementation.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation={implementation!r}: must be None or one of {', '.join(IMPLEMENTATIONS)}"
        )
    if max_length < 1:
        raise ValueError(f"max_length={max_length}: must be at least 1")
    if time_table is not None and (query_times is None or key_times is None):
        raise ValueError("time_table needs query_times and key_times (int32 seconds)")
    for table_name, table in (("position_table", position_table), ("time_table", time_table)):
        if table is not None and len(table) == 0:
            raise ValueError(f"{table_name} is empty: pass None for no bias")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: must be at least 1, or None for no window")
    if full_window_tail < 0:
        raise ValueError(f"full_window_tail={full_window_tail}: must be at least 0")

    device, dtype, width = dispatch.current_device(), v.dtype.name, max(q.shape[3], v.shape[3])
    name = implementation or dispatch.choose(device, dtype, width)
    on_cpu = {}  # only GPU kernels have an interpreter
    if interpret and name not in ("reference", "xla"):
        on_cpu = {"interpret": True}
    elif reason := dispatch.why_not(name, device, dtype, width):
        raise NotImplementedError(f"implementation={name!r} cannot run here: {reason}")
    attend = functools.partial(
        dispatch.load(name),
        max_length=max_length,
        scale=scale,
        window=window,
        full_window_tail=full_window_tail,
        **on_cpu,
    )
    rows = {"segments": segments, "targets": targets, "contexts": contexts}
    rows |= {"query_times": query_times, "key_times": key_times}
    tables = {"position_table": position_table, "time_table": time_table}
    return dispatch.per_shard(attend, {"q": q, "k": k, "v": v}, rows, tables, row_axis, head_axis)
