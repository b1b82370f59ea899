"""Attention of other libraries, to be timed beside ours where they are installed.

    cudnn    jax.nn.dot_product_attention by cuDNN: softmax, causal, full-length bfloat16 rows
    tokamax  tokamax.dot_product_attention: the same mathematics
    peer     a checkout of a PyTorch implementation of HSTU attention that has the module
             PEER_MODULE, without bias

The softmax rivals do the same matmuls, so their TFLOP/s compare; the peer is the same op on jagged
sequences.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pallas_kernels.bench.timing import Program
from pallas_kernels.dispatch import Device
from pallas_kernels.specs import Spec

SOFTMAX = ("cudnn", "tokamax")
RIVALS = (*SOFTMAX, "peer")
PEER_MODULE = "generative_recommenders.ops.triton.triton_hstu_attention"


def why_not(rival: str, device: Device, spec: Spec, peer: str) -> str | None:
    """The reason why a rival cannot run on this shape, or None."""
    if device.platform not in ("gpu", "cuda"):
        return f"it needs an NVIDIA GPU, the device is {device.kind}"
    if spec.bias:
        return "it has no relative bias"
    if rival == "peer":
        if not peer:
            return "no checkout given (--peer=DIR)"
        missing = [name for name in ("torch", "triton") if not importlib.util.find_spec(name)]
        return f"{', '.join(missing)} not installed" if missing else None
    if spec.median or spec.dtype != "bfloat16":
        return "it is timed on full-length bfloat16 rows only"
    if rival == "tokamax" and not importlib.util.find_spec("tokamax"):
        return "tokamax is not installed"
    return None


def softmax_attention(
    rival: str, spec: Spec
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """The causal softmax attention of `cudnn` or `tokamax`."""
    if rival == "cudnn":
        return lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, is_causal=True, implementation="cudnn"
        )
    attend = importlib.import_module("tokamax").dot_product_attention
    return lambda q, k, v: attend(q, k, v, is_causal=True)


def jagged(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The [R, L, ..] arrays without padding as [T, ..] by sequence, and the offsets [B + 1]."""
    segments = arrays["segments"]
    real = segments != 0
    row = np.broadcast_to(np.arange(len(segments))[:, None], segments.shape)
    starts = np.flatnonzero(np.diff(row[real], prepend=-1) | np.diff(segments[real], prepend=-1))
    offsets = np.append(starts, real.sum()).astype(np.int64)
    return {name: x[real] for name, x in arrays.items() if x.shape[:2] == segments.shape}, offsets


def peer_programs(
    directory: str, spec: Spec, sets: list[dict[str, np.ndarray]], scale: float
) -> dict[str, Program]:
    """The peer's forward and forward+backward on the jagged input sets, compiled and tuned.

    directory: the checkout. sets: inputs of `hstu_attention` and `d_out`, the gradient of its
        output.
    """
    if directory not in sys.path:
        sys.path.insert(0, directory)
    torch: Any = importlib.import_module("torch")
    attend = importlib.import_module(PEER_MODULE).triton_hstu_mha
    extra = {"causal": True} if "causal" in inspect.signature(attend).parameters else {}

    def on_device(arrays: dict[str, np.ndarray]):
        tokens, offsets = jagged(arrays)
        turn = lambda x: torch.from_numpy(x.astype(np.float32)).to(
            "cuda", getattr(torch, spec.dtype)
        )
        q, k, v = (turn(tokens[name]).requires_grad_() for name in "qkv")
        return q, k, v, turn(tokens["d_out"]), torch.from_numpy(offsets).to("cuda")

    placed = [on_device(arrays) for arrays in sets]

    def forward(i: int):
        q, k, v, _, offsets = placed[i % len(placed)]
        return attend(N=spec.max_length, alpha=scale, q=q, k=k, v=v, seq_offsets=offsets, **extra)

    def forward_backward(i: int):
        q, k, v, d_out, _ = placed[i % len(placed)]
        return torch.autograd.grad(forward(i), (q, k, v), d_out)

    def forward_alone(i: int):
        with torch.no_grad():
            return forward(i)

    wait = lambda _: torch.cuda.synchronize()
    programs = {
        "forward": Program(forward_alone, wait),
        "forward_backward": Program(forward_backward, wait),
    }
    for program in programs.values():
        program.wait(program.launch(0))
    return programs
