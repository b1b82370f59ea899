"""Which implementation can run on which device, and the op shard by shard on a mesh."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
from jax.sharding import AxisType, PartitionSpec

# Module and function of each implementation. Those for GPUs are imported when they are asked for:
# they need packages that only a GPU machine has to have.
IMPLEMENTATIONS = {
    "reference": ("reference", "reference_attention"),
    "xla": ("xla", "xla_attention"),
    "pallas_triton": ("triton.attention", "triton_attention"),
    "pallas_mosaic_gpu": ("mosaic_gpu.attention", "mosaic_gpu_attention"),
    "jax_triton": ("jax_triton.attention", "jax_triton_attention"),
}
# The same of attention to cached keys and values.
CACHED_IMPLEMENTATIONS = {
    "xla": ("cached.attention", "xla_cached_attention"),
    "pallas_triton": ("cached.triton", "triton_cached_attention"),
}
# The first one that can run is the default.
PREFERENCE = ("pallas_triton", "xla")
MAX_WIDTH = 256  # of a head, in the GPU kernels
# Of a head in the Mosaic kernels: wider ones are right but spill registers in the backward pass.
MOSAIC_WIDTH = 128
HOPPER = r"\b(GH200|H100|H200|H20|H800)\b"
BEFORE_AMPERE = r"\b(K80|P4|P40|P100|V100|T4|TITAN|Quadro|GTX|RTX 20\d\d)\b"


class Device(NamedTuple):
    """The platform of a device, such as `cpu` or `gpu`, and its name."""

    platform: str
    kind: str


def current_device() -> Device:
    """The device of the ambient mesh, where there is one, else JAX's default device."""
    mesh_device = jax.sharding.get_abstract_mesh().abstract_device
    if mesh_device is not None:
        return Device(mesh_device.platform or jax.default_backend(), mesh_device.device_kind)
    device = getattr(jax.config, "jax_default_device")  # noqa: B009 - unknown to the type checker
    if device is None or isinstance(device, str):
        device = jax.devices(device)[0]
    return Device(device.platform, device.device_kind)


def why_not(implementation: str, device: Device, dtype: str, width: int) -> str | None:
    """The reason why an implementation cannot run, with the remedy, or None if it can.

    dtype: of q, k and v. width: the larger head width of q and v.
    """
    if implementation in ("reference", "xla"):
        return None
    if device.platform not in ("gpu", "cuda"):
        return f"it needs an NVIDIA GPU, the device is {device.kind}; 'xla' runs everywhere"
    if width > MAX_WIDTH:
        return f"it takes head widths up to {MAX_WIDTH}, here {width}; 'xla' takes any"
    if re.search(BEFORE_AMPERE, device.kind):
        return (
            f"it needs an Ampere GPU or later, the device is {device.kind}; 'xla' runs everywhere"
        )
    if implementation == "jax_triton" and not importlib.util.find_spec("jax_triton"):
        return "the package jax-triton is missing; pip install 'gr-jax[gpu]'"
    if implementation == "pallas_mosaic_gpu":
        if not re.search(HOPPER, device.kind):
            return (
                f"it needs a Hopper GPU, such as an H100, the device is {device.kind};"
                " 'pallas_triton' takes Ampere"
            )
        if width > MOSAIC_WIDTH:
            return (
                f"it takes head widths up to {MOSAIC_WIDTH}, here {width};"
                f" 'pallas_triton' takes {MAX_WIDTH}"
            )
        if dtype not in ("bfloat16", "float16"):
            return f"it takes bfloat16 and float16, here {dtype}; 'pallas_triton' takes float32"
        if jax.__version_info__ < (0, 11):
            return f"it needs jax 0.11 or newer, here {jax.__version__}"
    return None


def choose(device: Device, dtype: str, width: int) -> str:
    """The preferred implementation among those that can run."""
    return next(name for name in PREFERENCE if why_not(name, device, dtype, width) is None)


def resolve(
    implementation: str | None, dtype: str, width: int, interpret: bool
) -> tuple[str, bool]:
    """The name of the implementation to run on this device, and whether in its interpreter.

    interpret: asked for; "reference" and "xla" have no interpreter.
    Raises NotImplementedError where a named implementation cannot run: it never falls back.
    """
    device = current_device()
    name = implementation or choose(device, dtype, width)
    interpret = interpret and name not in ("reference", "xla")
    if not interpret and (reason := why_not(name, device, dtype, width)):
        raise NotImplementedError(f"implementation={name!r} cannot run here: {reason}")
    return name, interpret


def check_arguments(
    implementation: str | None, known: Collection[str], max_length: int, window: int | None
) -> None:
    """Raise ValueError for a value that no implementation takes."""
    if implementation is not None and implementation not in known:
        raise ValueError(
            f"implementation={implementation!r}: must be None or one of {', '.join(known)}"
        )
    if max_length < 1:
        raise ValueError(f"max_length={max_length}: must be at least 1")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: must be at least 1, or None for no window")


def load(implementation: str, known: dict[str, tuple[str, str]] = IMPLEMENTATIONS) -> Callable:
    """The function of an implementation."""
    module, function = known[implementation]
    return getattr(importlib.import_module(f"pallas_kernels.{module}"), function)


def per_shard(
    call: Callable, by_head: dict, by_row: dict, whole: dict, row_axis: str, head_axis: str | None
) -> jax.Array:
    """call(**by_head, **by_row, **whole), on each device's own part where the mesh has these axes.

    A kernel is opaque to the partitioner, which would gather the rows of all devices for it. Inside
    a shard_map the arrays are local already.

    by_head: [R, L, H, ..], split over `row_axis`, and over `head_axis` where that divides H.
    by_row: [R, ..] or None, split over `row_axis`.
    whole: each device has all of them; their gradients are summed over the axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    row, head = (
        axis if types.get(axis) == AxisType.Auto and mesh.shape[axis] > 1 else None
        for axis in (row_axis, head_axis)
    )
    if head is not None and by_head["v"].shape[2] % mesh.shape[head]:
        head = None
    if row is None and head is None:
        return call(**by_head, **by_row, **whole)

    split = PartitionSpec(row, None, head)
    return jax.shard_map(
        lambda by_head, by_row, whole: call(**by_head, **by_row, **whole),
        in_specs=(split, PartitionSpec(row), PartitionSpec()),
        out_specs=split,
        axis_names={axis for axis in (row, head) if axis is not None},
        check_vma=False,  # the kernels do not say over which axes their outputs vary
    )(by_head, by_row, whole)
