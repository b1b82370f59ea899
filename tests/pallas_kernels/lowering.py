"""Lowering of attention for a GPU that is not there."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from pallas_kernels.specs import SPECS, TIME_BUCKETS, Spec

CALLS = {
    "pallas_triton": "@__gpu$xla.gpu.triton",
    "pallas_mosaic_gpu": "@mosaic_gpu_v2",
}  # in StableHLO


class Configuration(NamedTuple):
    """Facts that the code of a kernel depends on; rows, lengths and heads are numbers in it."""

    width: int  # A = V
    whole_blocks: bool  # L is a multiple of 64
    dtype: str
    bias: bool


def configuration(spec: Spec) -> Configuration:
    assert spec.qk_width == spec.v_width
    return Configuration(spec.qk_width, spec.length % 64 == 0, spec.dtype, spec.bias)


WIDTHS = (8, 16, 25, 50, 64, 128, 256)
CONFIGURATIONS = [
    Configuration(width, True, dtype, bias)
    for width, dtype, bias in itertools.product(WIDTHS, ("float32", "bfloat16"), (False, True))
]


def example(case: Configuration) -> Spec:
    """The largest named shape of a configuration, in whatever dtype."""
    found = [
        replace(spec, dtype=case.dtype)
        for spec in SPECS.values()
        if configuration(spec)._replace(dtype="") == case._replace(dtype="")
    ]
    return max(found, key=lambda spec: (spec.length, spec.heads))


def gpu_mesh(*shape: int, names: tuple[str, ...] = ("data",)) -> AbstractMesh:
    """A mesh of Hopper GPUs."""
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    return AbstractMesh(
        shape, names, axis_types=(AxisType.Auto,) * len(shape), abstract_device=device
    )


def lowered(call, *args, mesh: AbstractMesh | None = None) -> str:
    """The StableHLO of call(*args) for an NVIDIA GPU; args: arrays or their shapes."""
    with jax.sharding.use_abstract_mesh(mesh or gpu_mesh(1)):
        return jax.jit(call).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def input_shapes(spec: Spec) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of `specs.inputs` and of d_out, without making the arrays."""
    place = lambda *shape, dtype=spec.dtype: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    row, heads = (spec.rows, spec.length), (spec.rows, spec.length, spec.heads)
    shapes = {"q": spec.qk_width, "k": spec.qk_width, "v": spec.v_width, "d_out": spec.v_width}
    found = {name: place(*heads, width) for name, width in shapes.items()} | {
        "segments": place(*row, dtype="int32")
    }
    if spec.bias:
        found["position_table"] = place(spec.max_length, dtype="float32")
        found["time_table"] = place(TIME_BUCKETS, dtype="float32")
        found |= {name: place(*row, dtype="int32") for name in ("query_times", "key_times")}
    return found
