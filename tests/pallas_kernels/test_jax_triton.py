"""The Triton kernel behind jax-triton: its numbers in Triton's interpreter, its lowering for a GPU.

Both need packages that a machine without a GPU rarely has, and skip where they are missing.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import jax_triton_forward, specs
from pallas_kernels.jax_triton_forward import jax_triton_attention
from tests.pallas_kernels.packed_rows import VARIANTS, options, random_case

ROOT = Path(__file__).resolve().parents[2]


def need(*packages: str):
    missing = [name for name in packages if not importlib.util.find_spec(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@need("triton")
def test_the_kernel_equals_the_reference_in_the_interpreter():
    command = [sys.executable, "-m", "tests.pallas_kernels.triton_interpreter"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of this triton does not work with this numpy")
    assert done.returncode == 0, done.stderr[-2000:]
    errors = json.loads(done.stdout)
    assert {name.split()[0] for name in errors} == set(VARIANTS)
    assert {name: e for name, e in errors.items() if not max(e) < 2e-6 or any(x != x for x in e)} == {}


@pytest.fixture
def kernel(monkeypatch):
    """The module of the kernel without the run-time checks of the tests: Triton reads the sources of its functions."""
    name = "pallas_kernels.jax_triton_kernel"
    path = Path(jax_triton_forward.__file__).with_name("jax_triton_kernel.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@need("jax_triton", "jax_cuda13_plugin")
@pytest.mark.filterwarnings("ignore")  # of triton, about its own settings
@pytest.mark.parametrize("name", ["tiny", "tiny-bias", "4x128-sparse80-bias"])
def test_the_kernel_lowers_for_a_gpu(kernel, name):
    spec = specs.SPECS[name]
    arrays = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), specs.inputs(spec))
    call = lambda x: jax_triton_attention(**x, **specs.options(spec), compute_capability=90)
    text = jax.jit(call).trace(arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton_kernel_call" in text


def test_a_gradient_says_what_to_use_instead():
    floats, rows = jax.tree.map(jnp.array, random_case(0, "bias"))
    call = lambda q: jax_triton_attention(**(floats | {"q": q}), **rows, **options("bias")).sum()
    with pytest.raises(NotImplementedError, match="pallas_triton"):
        jax.grad(call)(floats["q"])


def test_default_blocks_are_tiles_that_triton_accepts():
    for dtype in ("float32", "bfloat16"):
        for width in (8, 25, 50, 64, 128, 256):
            blocks = jax_triton_forward.default_blocks(width, width, dtype)
            assert all(n >= 16 and n & (n - 1) == 0 for n in blocks[:2])
