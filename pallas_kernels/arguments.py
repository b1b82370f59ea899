"""The arguments of a backend beside q, k and v: mask, bias and options.

`hstu_attention` makes them once from its keywords; every backend is a function (q, k, v, mask,
bias, options).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Array, Bool, Float, Int

# An array outside a kernel, its Pallas reference inside, which have no common type; a block
# specification or None in its place.
ArrayOrRef: TypeAlias = Any


class Mask(NamedTuple):
    """What decides which token sees which; the rules are in `masks.allowed_pairs`.

    Attributes:
      segments: 0 = padding; each run of an equal non-zero id is one sequence.
      targets: candidate tokens, at the end of their sequence; None = there are none.
      window: longest distance of effective positions that a token sees; None = no limit.
    """

    segments: Int[Array, "R L"]
    targets: Bool[Array, "R L"] | None = None
    window: int | None = None


class Bias(NamedTuple):
    """What decides the bias of a pair; None = no such part, and no times without a time table."""

    position_table: Float[Array, " P"] | None = None
    time_table: Float[Array, " buckets"] | None = None
    query_times: Int[Array, "R L"] | None = None
    key_times: Int[Array, "R L"] | None = None


class Options(NamedTuple):
    """Compile-time constants.

    Attributes:
      max_length: N, the fixed normaliser; no visible pair is further apart than this.
      scale: multiplies q.k.
      interpret: run a GPU kernel in its interpreter.
      blocks: block sizes in place of the measured or default ones, of the type of the backend.
    """

    max_length: int
    scale: float = 1.0
    interpret: bool = False
    blocks: tuple | None = None


def backend_arguments(
    arrays: Mapping[str, Array | None], window: int | None = None
) -> tuple[Array | None, Array | None, Array | None, Mask, Bias]:
    """q, k, v, mask and bias from arrays by the names of `hstu_attention`; absent ones are None."""
    segments = arrays["segments"]
    assert segments is not None
    bias = Bias(*(arrays.get(name) for name in Bias._fields))
    if bias.time_table is None:
        bias = bias._replace(query_times=None, key_times=None)
    mask = Mask(segments, arrays.get("targets"), window)
    return arrays["q"], arrays["k"], arrays["v"], mask, bias
