"""Every kernel, through its interpreter, against the dense specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch, hstu_attention
from pallas_kernels.dispatch import Device
from tests.pallas_kernels.packed_rows import VARIANTS, options, random_case

CPU, H200, A100, V100 = Device("cpu", "cpu"), *(Device("gpu", f"NVIDIA {kind}") for kind in ("H200", "A100", "V100"))


def output_and_gradients(variant, floats, rows, **how):
    attend = lambda floats: hstu_attention(**floats, **jax.tree.map(jnp.array, rows), **options(variant), **how)
    out, backward = jax.vjp(attend, jax.tree.map(jnp.array, floats))
    return out, backward(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_triton_kernels_equal_the_reference_and_padding_does_not_leak(variant):
    floats, rows = random_case(1, variant)
    expected = output_and_gradients(variant, floats, rows, implementation="reference")
    padding = (rows["segments"] == 0)[..., None, None]
    poisoned = floats | {key: np.where(padding, np.float32(np.nan), floats[key]) for key in "qkv"}
    ours = output_and_gradients(variant, poisoned, rows, implementation="pallas_triton", interpret=True)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("name", "device", "dtype", "reason"),
    [
        ("pallas_triton", CPU, "float32", "needs an NVIDIA GPU"),
        ("pallas_triton", V100, "float32", "needs an Ampere GPU"),
        ("pallas_mosaic_gpu", A100, "bfloat16", "needs a Hopper GPU"),
        ("pallas_mosaic_gpu", H200, "float32", "takes bfloat16"),
    ],
)
def test_an_implementation_that_cannot_run_says_why(name, device, dtype, reason):
    assert reason in str(dispatch.why_not(name, device, dtype, 64))


def test_each_device_has_an_implementation():
    assert dispatch.choose(CPU, "float32", 64) == "xla"
    assert dispatch.choose(V100, "float32", 64) == "xla"
    assert dispatch.choose(A100, "bfloat16", 64) == "pallas_triton"
    assert dispatch.choose(A100, "bfloat16", 512) == "xla"


def test_a_named_implementation_never_falls_back():
    floats, rows = random_case(0, "plain")
    with pytest.raises(NotImplementedError, match="'pallas_triton' cannot run here"):
        output_and_gradients("plain", floats, rows, implementation="pallas_triton")
