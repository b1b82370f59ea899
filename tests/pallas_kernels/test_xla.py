"""The chunked implementation beyond the tests that all share: memory, bfloat16, sharding."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import hstu_attention, xla
from tests.pallas_kernels.packed_rows import random_rows
from tests.pallas_kernels.subjects import expected, make_case, results


def assert_close(ours, expected, atol=1e-5):
    """Assert equality leaf by leaf, to `atol` times the largest entry of the leaf where above 1."""
    for (path, a), b in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True
    ):
        bound = atol * max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))


def test_the_shipped_chunk_equals_the_reference_on_rows_of_several_chunks():
    rng = np.random.default_rng(0)
    segments = np.repeat([[1, 2, 0, 3]], [50, 60, 3, 57], axis=1)
    times = jnp.array(np.sort(rng.integers(0, 10**8, segments.shape)), jnp.int32)
    floats = {name: rng.normal(size=(1, 170, 1, 8)).astype(np.float32) for name in ("q", "k", "v")}
    floats |= {"position_table": rng.normal(size=60), "time_table": rng.normal(size=129)}

    def gradients(implementation):
        forward = lambda floats: hstu_attention(
            **floats,
            segments=jnp.array(segments),
            query_times=times,
            key_times=times,
            max_length=60,
            implementation=implementation,
        )
        return jax.jit(jax.grad(lambda floats: jnp.sum(forward(floats) ** 2)))(
            jax.tree.map(jnp.float32, floats)
        )

    assert_close(gradients("xla"), gradients("reference"))


def test_long_rows_hold_no_tensor_of_length_squared():
    length, longest = 2048, 32
    segments, times = jnp.arange(length)[None] // longest + 1, jnp.arange(length)[None]
    q = jnp.ones((1, length, 1, 8))

    def loss(q, k, v, position_table, time_table):
        return hstu_attention(
            *(q, k, v, segments),
            max_length=longest,
            position_table=position_table,
            time_table=time_table,
            query_times=times,
            key_times=times,
            implementation="xla",
        ).sum()

    program = jax.jit(jax.value_and_grad(loss, argnums=range(5))).lower(
        q, q, q, jnp.ones(longest), jnp.ones(129)
    )
    shapes = re.findall(r"\w\[([\d,]+)\]", program.compile().as_text())
    largest = max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes)
    assert (
        largest <= 2 * q.size
    )  # a chunk against the whole row would be 4 times, [L, L] 128 times as much


def test_bfloat16_inputs_give_a_close_bfloat16_result():
    rows = random_rows(np.random.default_rng(3), 7, 40, 17)
    case = make_case("xla", "all", rows, 3)
    half = case._replace(
        floats=case.floats | {name: case.floats[name].astype(jnp.bfloat16) for name in "qkv"}
    )
    half = half._replace(cotangent=case.cotangent.astype(jnp.bfloat16))
    out, gradients = results("xla", "all", 17, half)
    assert out.dtype == jnp.bfloat16 and gradients["k"].dtype == jnp.bfloat16
    assert gradients["time_table"].dtype == jnp.float32
    ours = jax.tree.map(lambda x: np.array(x, np.float32), (out, gradients))
    assert_close(ours, expected("xla", "all", 17, half), atol=0.02)


def test_rows_shard_over_devices_without_gathering_them():
    case = make_case("xla", "bias", random_rows(np.random.default_rng(0), 8, 40, 17), 0)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = lambda x: jax.device_put(
        x, NamedSharding(mesh, PartitionSpec("data") if x.ndim > 1 else PartitionSpec())
    )
    options = {"max_length": 17, "implementation": "xla"}
    call = jax.jit(lambda floats, rows: hstu_attention(**floats, **rows, **options))
    sharded = jax.tree.map(spread, (case.floats, case.rows))
    assert not re.search(r"all-(gather|to-all|reduce)", call.lower(*sharded).compile().as_text())
    assert_close(call(*sharded), call(case.floats, case.rows), atol=1e-6)


def test_a_row_as_long_as_a_sequence_computes_about_the_causal_half_of_the_pairs(monkeypatch):
    widths = []

    def attend(query, key, *tables, **options):
        widths.append(key[0].shape[1])
        return query[0]

    monkeypatch.setattr(xla, "_chunk_attention", attend)
    q, segments = jnp.ones((1, 1024, 1, 8)), jnp.ones((1, 1024), jnp.int32)
    out = hstu_attention(q, q, q, segments, max_length=1024, implementation="xla")
    assert (out == 1).all()
    assert widths == [128, 256, 384, 512, 640, 768, 896, 1024]  # two chunks of 64 queries each

    widths.clear()
    hstu_attention(q, q, q, segments, max_length=1024, window=100, implementation="xla")
    assert max(widths) == 164  # a chunk and the window before it
