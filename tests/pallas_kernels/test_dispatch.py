"""Which implementation runs on which device, and the op under a mesh."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from pallas_kernels import dispatch, hstu_attention
from pallas_kernels.dispatch import Device
from tests.pallas_kernels.lowering import CALLS, gpu_mesh, lowered

CPU, H200, A100, V100 = (
    Device("cpu", "cpu"),
    *(Device("gpu", f"NVIDIA {kind}") for kind in ("H200", "A100", "V100")),
)


@pytest.mark.parametrize(
    ("name", "device", "dtype", "reason"),
    [
        ("pallas_triton", CPU, "float32", "needs an NVIDIA GPU"),
        ("pallas_triton", V100, "float32", "needs an Ampere GPU"),
        ("pallas_mosaic_gpu", A100, "bfloat16", "needs a Hopper GPU"),
        ("pallas_mosaic_gpu", H200, "float32", "takes bfloat16"),
        ("jax_triton", CPU, "float32", "needs an NVIDIA GPU"),
    ],
)
def test_an_implementation_that_cannot_run_says_why(name, device, dtype, reason):
    assert reason in str(dispatch.why_not(name, device, dtype, 64))


def test_jax_triton_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'gr-jax[gpu]'" in str(dispatch.why_not("jax_triton", H200, "float32", 64))


def test_wide_heads_go_to_the_kernels_that_do_not_spill():
    assert "head widths up to 128" in str(
        dispatch.why_not("pallas_mosaic_gpu", H200, "bfloat16", 256)
    )
    assert dispatch.why_not("pallas_triton", H200, "bfloat16", 256) is None


def test_each_device_has_an_implementation():
    assert dispatch.choose(CPU, "float32", 64) == "xla"
    assert dispatch.choose(V100, "float32", 64) == "xla"
    assert dispatch.choose(A100, "bfloat16", 64) == "pallas_triton"
    assert dispatch.choose(A100, "bfloat16", 512) == "xla"


@pytest.mark.parametrize("name", ["pallas_triton", "pallas_mosaic_gpu", "jax_triton"])
def test_a_named_implementation_never_falls_back(name):
    q = jnp.ones((1, 4, 2, 3))
    with pytest.raises(
        NotImplementedError, match=f"'{name}' cannot run here: it needs an NVIDIA GPU"
    ):
        hstu_attention(q, q, q, jnp.ones((1, 4), jnp.int32), max_length=4, implementation=name)


def program(mesh: AbstractMesh, implementation: str | None) -> str:
    """The StableHLO of output and gradients for a mesh of GPUs that are not there.

    Rows are split over it.
    """
    rows, length, heads, width = 8, 128, 2, 64
    place = lambda shape, dtype, spec: jax.ShapeDtypeStruct(
        shape, dtype, sharding=NamedSharding(mesh, spec)
    )
    split, whole = PartitionSpec("data"), PartitionSpec()
    vectors = place((rows, length, heads, width), jnp.bfloat16, split)
    integers, table = place((rows, length), jnp.int32, split), place((60,), jnp.float32, whole)

    def call(q, k, v, segments, times, position_table, time_table):
        def attend(*floats):
            q, k, v, position_table, time_table = floats
            return hstu_attention(
                *(q, k, v, segments),
                max_length=64,
                position_table=position_table,
                time_table=time_table,
                query_times=times,
                key_times=times,
                implementation=implementation,
            )

        out, backward = jax.vjp(attend, q, k, v, position_table, time_table)
        return out, backward(out)

    return lowered(call, vectors, vectors, vectors, integers, integers, table, table, mesh=mesh)


MESHES = {"data 8": ((8, 1), 2), "data 4 x model 2": ((4, 2), 1)}  # shape, heads of a device


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    ("implementation", "kernel"),
    [
        ("pallas_triton", "pallas_triton"),
        (None, "pallas_triton"),
        ("pallas_mosaic_gpu", "pallas_mosaic_gpu"),
    ],
)
def test_each_gpu_of_a_mesh_runs_the_kernels_on_its_own_rows_and_heads(
    implementation, kernel, mesh
):
    if implementation == "pallas_mosaic_gpu" and jax.__version_info__ < (0, 11):
        pytest.skip("Mosaic GPU kernels need jax >= 0.11")
    (data, model), heads = MESHES[mesh]
    text = program(gpu_mesh(data, model, names=("data", "model")), implementation)
    calls = [line for line in text.splitlines() if CALLS[kernel] in line]
    assert len(calls) == 4  # forward, d_q, d_k with d_v, tables
    for line in calls:
        vectors = set(re.findall(r"tensor<(\d+x\d+x\d+x64)xbf16>", line))
        assert vectors == {f"{8 // data}x128x{heads}x64"}, line
    # Rows stay where they are: the only exchange is the sum of the gradients of the two tables.
    assert not re.search(r"all_gather|all_to_all|collective_permute", text)
    exchanged = re.findall(r"stablehlo.all_reduce.*?\n.*?\n.*?\n.*?\n\s*\}\) : \((.*?)\)", text)
    assert all("x64x" not in shape for shape in exchanged)
