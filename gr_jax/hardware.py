"""Peak rates of a device: arithmetic, memory and links, from data sheets or measured here."""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

GIB = 2.0**30


@dataclass(frozen=True)
class Device:
    """One device and its links. Rates are peaks; programs reach less."""

    name: str
    bf16_flops: float  # dense FLOP/s of matrix products in bfloat16
    f32_flops: float  # the same in float32; on NVIDIA as TF32, which is JAX's default there
    memory: float  # bytes
    bandwidth: float  # bytes/s of that memory
    link: float  # bytes/s in one direction to the devices of the same node
    network: float  # bytes/s in one direction to other nodes, a device's share
    node: int  # devices in a node
    source: str

    def flops(self, dtype: str) -> float:
        """Peak FLOP/s in a compute dtype."""
        return self.bf16_flops if dtype == "bfloat16" else self.f32_flops

    def wire(self, devices: int) -> float:
        """Bytes/s in one direction of a device in a collective over this number of devices."""
        return self.link if devices <= self.node else min(self.link, self.network)


_HGX = "; network: a 400 Gb/s adapter for each GPU, as in NVIDIA's DGX"
# A data sheet's GB is 10^9 bytes.
DEVICES = {
    "h100": Device(
        "H100 SXM", 989e12, 494e12, 80e9, 3.35e12, 450e9, 50e9, 8, "NVIDIA H100 data sheet" + _HGX
    ),
    "h200": Device(
        "H200 SXM", 989e12, 494e12, 141e9, 4.8e12, 450e9, 50e9, 8, "NVIDIA H200 data sheet" + _HGX
    ),
    "a100": Device(
        "A100 SXM 80GB",
        312e12,
        156e12,
        80e9,
        2.039e12,
        300e9,
        25e9,
        8,
        "NVIDIA A100 data sheet; network: 200 Gb/s",
    ),
}
# Dense peaks of other devices, in bfloat16 and in float32 as TF32, from NVIDIA's data sheets.
OTHER_FLOPS = {
    "gh200": (989e12, 494e12),
    "b200": (2250e12, 1100e12),
    "gb200": (2500e12, 1250e12),
    "l40s": (362e12, 183e12),
    "l4": (121e12, 60e12),
}


def peak_of(kind: str, dtype: str) -> float | None:
    """Dense peak in FLOP/s of a device by its name in JAX, such as `NVIDIA H100 80GB HBM3`."""
    words = re.findall(r"\w+", kind.lower())  # an L40 is no L4
    for name, device in DEVICES.items():
        if name in words:
            return device.flops(dtype)
    for name, (bf16_flops, f32_flops) in OTHER_FLOPS.items():
        if name in words:
            return bf16_flops if dtype == "bfloat16" else f32_flops
    return None


@functools.cache
def measured_flops() -> float:
    """FLOP/s of a float32 matrix product, measured now; of all virtual CPU devices together."""
    n = 1024
    a = jnp.ones((n, n), jnp.float32)
    product = jax.jit(jnp.matmul)
    return 2 * n**3 / _best_seconds(lambda: product(a, a))


def this_cpu(devices: int) -> Device:
    """This machine as a number of virtual devices that share its cores and memory; measured now."""
    n = 1 << 24
    a = jnp.ones(n, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    bandwidth = 2 * 4 * n / _best_seconds(lambda: copy(a))
    flops = measured_flops() / devices
    memory = float(host_memory())
    share = bandwidth / devices
    return Device(
        "cpu", flops, flops, memory / devices, share, share / 2, share / 2, devices, "measured now"
    )


def host_memory() -> int:
    """Bytes of memory of this machine, or of the container that this process is in."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups, versions 2 and 1
        try:
            limits.append(int(Path("/sys/fs/cgroup", file).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(limits)


def _best_seconds(run: Callable[[], jax.Array]) -> float:
    """The shortest of ten runs after a first one: other programs may be running."""
    run().block_until_ready()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        run().block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
