"""A program: the largest errors of the jax-triton kernel in Triton's interpreter, as JSON by variant and blocks.

    TRITON_INTERPRET=1 python -m tests.pallas_kernels.triton_interpreter

A process of its own, because that variable decides when triton is imported. Padding of q, k and v holds NaN.
"""

import json
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import hstu_attention
from pallas_kernels.block_sizes import Blocks
from pallas_kernels.jax_triton_forward import jax_triton_attention
from tests.pallas_kernels.packed_rows import VARIANTS, options, random_case

BLOCKS = (Blocks(16, 16, 4, 1), Blocks(16, 32, 4, 1))
SEEDS = 3


class Tensor:
    """What the interpreter asks of a torch tensor, over a numpy array that kernels read and write in place."""

    def __init__(self, array: np.ndarray):
        self.array, self.dtype = array, array.dtype

    def data_ptr(self):
        return self.array.ctypes.data

    def untyped_storage(self):
        return self

    cpu = untyped_storage

    def new_empty(self, size, device):
        return Tensor(np.empty(size, self.dtype))

    def set_(self, storage, offset, size, stride):
        self.array = storage.array

    def copy_(self, other):
        assert other.array is self.array

    storage_offset = size = stride = lambda self: None


def triton_call(*args, kernel, out_shape, grid, num_warps, num_stages, **sizes):
    """Stands in for `jax_triton.triton_call`."""
    out = Tensor(np.full(out_shape.shape, np.nan, out_shape.dtype))
    kernel[grid](*(Tensor(np.array(x)) for x in args), out, **sizes)
    return jnp.array(out.array)


def largest_error(variant: str, blocks: Blocks, seed: int) -> float:
    floats, rows = jax.tree.map(jnp.array, random_case(seed, variant))
    expected = hstu_attention(**floats, **rows, **options(variant), implementation="reference")
    padding = (rows["segments"] == 0)[..., None, None]
    poisoned = floats | {name: jnp.where(padding, jnp.nan, floats[name]) for name in "qkv"}
    return float(abs(jax_triton_attention(**poisoned, **rows, **options(variant), blocks=blocks) - expected).max())


def main() -> None:
    from pallas_kernels import jax_triton_kernel

    sys.modules["jax_triton"] = types.SimpleNamespace(triton_call=triton_call)  # type: ignore
    log = lambda x: jax_triton_kernel.tl.log(x)  # libdevice cannot be interpreted
    jax_triton_kernel.libdevice = types.SimpleNamespace(log=log)
    names = [(variant, blocks) for variant in VARIANTS for blocks in BLOCKS]
    print(json.dumps({f"{v} {b}": [largest_error(v, b, seed) for seed in range(SEEDS)] for v, b in names}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
