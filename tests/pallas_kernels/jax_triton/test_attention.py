"""The Triton kernel of jax-triton: the shared tests in Triton's interpreter, and its lowering.

Both need packages that a machine without a GPU rarely has, and skip where they are missing.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.arguments import Bias, Mask, Options
from pallas_kernels.bench import measure
from pallas_kernels.jax_triton import attention
from pallas_kernels.jax_triton.attention import jax_triton_attention
from tests.pallas_kernels.lowering import CONFIGURATIONS, example, input_shapes, lowered

ROOT = Path(__file__).resolve().parents[3]


def need(*packages: str):
    missing = [name for name in packages if not importlib.util.find_spec(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@need("triton")
@pytest.mark.timeout(1800)
def test_the_kernel_passes_the_shared_tests_in_the_interpreter():
    files = [f"tests/pallas_kernels/test_{name}.py" for name in ("implementations", "reference")]
    # Without the run-time checks of the tests: Triton reads the sources of its functions.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--override-ini=addopts=--import-mode=importlib",
        "-k",
        "jax-triton",
    ]
    command += ["-q", "-x", "-W", "ignore", *files]
    environment = os.environ | {"TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted" in done.stdout:
        pytest.skip("the interpreter of this triton does not work with this numpy")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "passed" in done.stdout


@pytest.fixture
def kernel(monkeypatch):
    """The module of the kernel without the run-time checks of the tests.

    Triton reads the sources of its functions.
    """
    name = "pallas_kernels.jax_triton.kernel"
    path = Path(attention.__file__).with_name("kernel.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@need("jax_triton", "jax_cuda13_plugin")
@pytest.mark.filterwarnings("ignore")  # of triton, about its own settings
@pytest.mark.parametrize("case", CONFIGURATIONS, ids=str)
def test_the_kernel_lowers_for_a_gpu(kernel, case):
    spec = example(case)
    backend = functools.partial(jax_triton_attention, compute_capability=90)
    forward = measure.functions(backend, spec)["forward"]
    assert "triton_kernel_call" in lowered(forward, input_shapes(spec))


def test_a_gradient_says_what_to_use_instead():
    q, segments = jnp.ones((1, 16, 1, 16)), jnp.ones((1, 16), jnp.int32)
    arguments = Mask(segments), Bias(), Options(max_length=16)
    with pytest.raises(NotImplementedError, match="pallas_triton"):
        jax.grad(lambda q: jax_triton_attention(q, q, q, *arguments).sum())(q)


def test_default_blocks_are_tiles_that_triton_accepts():
    for dtype in ("float32", "bfloat16"):
        for width in (8, 25, 50, 64, 128, 256):
            blocks = attention.default_blocks(width, width, dtype)
            assert all(n >= 16 and n & (n - 1) == 0 for n in blocks[:2])
