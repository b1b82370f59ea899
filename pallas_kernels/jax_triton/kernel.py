"""The forward kernel of HSTU attention in Triton's own language.

Importing this module needs triton. A kernel's arguments are pointers and compile-time numbers,
which jax-triton hands over one by one: hence the long list. It stands once, as the loop over blocks
of keys is no function of its own.
"""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from triton.language.extra import libdevice  # pyright: ignore[reportMissingImports]


@triton.jit  # pyright: ignore[reportAttributeAccessIssue]
def forward_kernel(
    q, k, v, first, end, position, ranges, order, query_times, key_times,
    position_table, time_table, out,
    scale: tl.constexpr, inverse_length: tl.constexpr,
    length: tl.constexpr, heads: tl.constexpr, a: tl.constexpr, v_width: tl.constexpr,
    positions: tl.constexpr, buckets: tl.constexpr, by_index: tl.constexpr,
    query_block: tl.constexpr, key_block: tl.constexpr,
    a_lanes: tl.constexpr, v_lanes: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Write the output of one block of queries of one head.

    `positions` and `buckets` are the entries of the tables, 0 = no bias; unused pointers may point
    at anything.
    """
    program = tl.program_id(0)
    head = program % heads
    item = tl.load(order + program // heads)
    num_blocks: tl.constexpr = (length + query_block - 1) // query_block
    row = (item // num_blocks).to(tl.int64)
    i = (item % num_blocks) * query_block + tl.arange(0, query_block)
    lane_a, lane_v = tl.arange(0, a_lanes), tl.arange(0, v_lanes)

    in_row = i < length
    token_i = row * length + i
    first_i = tl.load(first + token_i, mask=in_row, other=length)
    end_i = tl.load(end + token_i, mask=in_row, other=0)
    position_i, time_i = i, i
    if positions > 0 and not by_index:
        position_i = tl.load(position + token_i, mask=in_row, other=0)
    if buckets > 0:
        time_i = tl.load(query_times + token_i, mask=in_row, other=0)
    at_q = (token_i * heads + head)[:, None] * a + lane_a[None, :]
    q_tile = tl.load(q + at_q, mask=in_row[:, None] & (lane_a < a)[None, :], other=0.0)

    acc = tl.zeros((query_block, v_lanes), tl.float32)
    # The blocks of the history, then the diagonal blocks of targets; see
    # `visible_keys.key_block_ranges`.
    for part in tl.static_range(2):
        start = tl.load(ranges + item * 4 + 2 * part)
        stop = tl.load(ranges + item * 4 + 2 * part + 1)
        for block in range(start, stop):
            j = block * key_block + tl.arange(0, key_block)
            token_j = row * length + j
            in_row_j = j < length
            first_j = tl.load(first + token_j, mask=in_row_j, other=length)
            # Padding may hold NaN, and 0 * NaN is NaN: its values are left out of the second
            # product.
            real = first_j < length
            at_k = (token_j * heads + head)[None, :] * a + lane_a[:, None]
            k_tile = tl.load(k + at_k, mask=in_row_j[None, :] & (lane_a < a)[:, None], other=0.0)
            at_v = (token_j * heads + head)[:, None] * v_width + lane_v[None, :]
            v_tile = tl.load(v + at_v, mask=real[:, None] & (lane_v < v_width)[None, :], other=0.0)

            s = tl.dot(q_tile, k_tile, input_precision=precision) * scale
            if positions > 0:
                if by_index:
                    distance = i[:, None] - j[None, :]
                else:
                    position_j = tl.load(position + token_j, mask=in_row_j, other=0)
                    distance = position_i[:, None] - position_j[None, :]
                s += tl.load(position_table + tl.minimum(tl.maximum(distance, 0), positions - 1))
            if buckets > 0:
                time_j = tl.load(key_times + token_j, mask=in_row_j, other=0)
                seconds = time_i[:, None] - time_j[None, :]
                magnitude = tl.maximum(tl.abs(seconds), 1).to(tl.float32)
                # Not tl.log, an approximation: a bucket boundary must fall where it does in
                # `masks.time_bucket`.
                width = tl.full(magnitude.shape, 0.301, tl.float32)
                bucket = tl.div_rn(libdevice.log(magnitude), width).to(tl.int32)
                s += tl.load(time_table + tl.minimum(bucket, buckets - 1))

            visible = (first_i[:, None] <= j[None, :]) & (j[None, :] < end_i[:, None])
            visible = visible | ((i[:, None] == j[None, :]) & (first_i < length)[:, None])
            weights = tl.where(visible, s * tl.sigmoid(s) * inverse_length, 0.0)
            acc += tl.dot(weights.to(v_tile.dtype), v_tile, input_precision=precision)

    at_out = (token_i * heads + head)[:, None] * v_width + lane_v[None, :]
    in_out = in_row[:, None] & (lane_v < v_width)[None, :]
    tl.store(out + at_out, acc.to(out.dtype.element_ty), mask=in_out)
