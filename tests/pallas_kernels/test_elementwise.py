"""The elementwise stages around attention: plain composition, and the arrays that they keep."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels.elementwise import normalised_gate, normalised_projection
from tests.pallas_kernels.lowering import CALLS, gpu_mesh, lowered

EPS = 1e-6


def layer_norm(x):
    """As plain as can be, and differentiated by JAX."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    variance = wide.var(-1, keepdims=True)
    return ((wide - wide.mean(-1, keepdims=True)) / jnp.sqrt(variance + EPS)).astype(x.dtype)


def plain_projection(x, weight):
    return jax.nn.silu(layer_norm(x) @ weight)


def plain_gate(u, attended):
    return u * layer_norm(attended)


def vectors(seed: int, *shapes, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [jnp.array(rng.normal(size=shape) * 3, dtype) for shape in shapes]


def output_and_gradients(function, *args):
    def call(*args):
        out, backward = jax.vjp(function, *args)
        return out, backward(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    return jax.jit(call)(*args)


def assert_close(ours, expected, tolerance):
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        x, y = np.array(x, np.float64), np.array(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max())


DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 2e-2)]
)


@DTYPES
def test_the_projection_equals_its_plain_composition(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        args = vectors(0, (2, 7, 12), (12, 20), dtype=dtype)
        ours = output_and_gradients(lambda x, weight: normalised_projection(x, weight, EPS), *args)
        assert_close(ours, output_and_gradients(plain_projection, *args), tolerance)


@DTYPES
def test_the_gate_equals_its_plain_composition(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        args = vectors(1, (2, 7, 12), (2, 7, 12), dtype=dtype)
        ours = output_and_gradients(lambda u, x: normalised_gate(u, x, EPS), *args)
        assert_close(ours, output_and_gradients(plain_gate, *args), tolerance)


@pytest.mark.parametrize(
    "width", [25, 64, 200]
)  # a few of 32 lanes, all of 64, and rows that take a tile in part
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_gate_kernels_equal_the_plain_composition_in_the_interpreter(dtype, tolerance, width):
    args = vectors(2, (3, 67, width), (3, 67, width), dtype=dtype)
    gate = lambda u, x: normalised_gate(u, x, EPS, implementation="pallas_triton", interpret=True)
    assert_close(
        output_and_gradients(gate, *args), output_and_gradients(plain_gate, *args), tolerance
    )


def test_rows_without_variance_have_finite_gradients():
    u, zeros = jnp.ones((1, 3, 8)), jnp.zeros((1, 3, 8))
    for how in ({}, {"implementation": "pallas_triton", "interpret": True}):
        gate = lambda u, x, how=how: normalised_gate(u, x, EPS, **how)
        leaves = jax.tree.leaves(output_and_gradients(gate, u, zeros))
        assert all(np.isfinite(x).all() for x in leaves)


STAGES = pytest.mark.parametrize(
    ("stage", "shapes"),
    [(normalised_projection, [(2, 7, 12), (12, 20)]), (normalised_gate, [(2, 7, 12), (2, 7, 12)])],
    ids=["projection", "gate"],
)


@STAGES
def test_nothing_but_the_inputs_is_kept_for_the_backward_pass(stage, shapes):
    inputs = vectors(0, *shapes)
    kept = jax.tree.leaves(jax.vjp(lambda x, y: stage(x, y, EPS), *inputs)[1])
    assert sum(x.size for x in kept) == sum(x.size for x in inputs)


@STAGES
def test_nothing_is_computed_again_before_the_gradient_has_come(stage, shapes):
    # A compiler that schedules it earlier, right after the forward pass, keeps it until the
    # gradient comes.
    inputs = vectors(0, *shapes)
    out, backward = jax.vjp(lambda x, y: stage(x, y, EPS), *inputs)
    equations = jax.make_jaxpr(backward)(jnp.ones_like(out))
    (cotangent,), ready = equations.jaxpr.invars, set(equations.jaxpr.constvars)
    early = set()
    for equation in equations.eqns:
        sources = {x for x in equation.invars if not isinstance(x, jax.extend.core.Literal)}
        if sources <= ready:
            ready |= set(equation.outvars)
            early.add(equation.primitive.name)
    assert cotangent not in ready and not early - {"convert_element_type", "broadcast_in_dim"}, (
        early
    )


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [50, 64, 512, 1024])
@pytest.mark.parametrize("implementation", [None, "pallas_triton"])
def test_the_gate_kernels_lower_for_a_gpu(implementation, width, dtype):
    rows = jax.ShapeDtypeStruct((2, 128, width), jnp.dtype(dtype))
    call = lambda u, x: output_and_gradients(
        lambda u, x: normalised_gate(u, x, EPS, implementation=implementation), u, x
    )
    assert lowered(call, rows, rows).count(CALLS["pallas_triton"]) == 2


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize(("mesh", "calls"), [((8, 1), 2), ((4, 2), 0)])
def test_each_gpu_of_a_mesh_gates_its_own_rows(mesh, calls):
    mesh = gpu_mesh(*mesh, names=("data", "model"))
    rows = jax.ShapeDtypeStruct(
        (8, 128, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data"))
    )
    text = lowered(
        lambda u, x: output_and_gradients(lambda u, x: normalised_gate(u, x, EPS), u, x),
        rows,
        rows,
        mesh=mesh,
    )
    found = [line for line in text.splitlines() if CALLS["pallas_triton"] in line]
    assert len(found) == calls  # where columns are split too, XLA does it
    assert all("tensor<128x64xf32>" in line for line in found)
    assert "all_gather" not in text


def test_a_named_kernel_that_cannot_run_says_why():
    u = jnp.ones((1, 2, 8))
    with pytest.raises(
        NotImplementedError, match="'pallas_triton' cannot run here: it needs an NVIDIA GPU"
    ):
        normalised_gate(u, u, EPS, implementation="pallas_triton")
    assert normalised_gate(u, u, EPS, implementation="xla").shape == u.shape
