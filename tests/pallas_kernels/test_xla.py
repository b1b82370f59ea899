"""The block-windowed implementation against the dense specification, and what both promise about packed rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import hstu_attention, xla
from tests.pallas_kernels.packed_rows import LENGTH, ROWS, VARIANTS, attention_and_gradients, options, random_case

seeds = given(seed=st.integers(0, 2**32 - 1))
several = settings(max_examples=8, deadline=None)


@pytest.fixture(scope="module", params=["unrolled", "scanned"])
def layout(request):
    """Small chunks, so that short rows have several of them, in each of the two programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xla, "CHUNK", 16)
        patch.setattr(xla, "MAX_UNROLLED", 8 if request.param == "unrolled" else 1)
        yield request.param


def output(implementation: str, variant: str, layout: str):
    """Returns `(floats, rows) -> output`, by the program that `attention_and_gradients` has compiled already."""
    call = attention_and_gradients(implementation, variant, layout if implementation == "xla" else "")
    return lambda floats, rows: call(floats, rows)[0]


def assert_close(ours, expected, atol=1e-5):
    """Asserts equality leaf by leaf, to `atol` times the largest entry of the leaf where that is above 1."""
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        bound = atol * max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("variant", VARIANTS)
@several
@seeds
def test_outputs_and_all_gradients_equal_the_reference(layout, variant, seed):
    case = random_case(seed, variant)
    ours = attention_and_gradients("xla", variant, layout)(*case)
    assert_close(ours, attention_and_gradients("reference", variant)(*case))


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@several
@seeds
def test_padding_and_neighbours_change_nothing(layout, implementation, seed):
    floats, rows = random_case(seed, "all")
    other_floats, other_rows = random_case(seed + 1, "all")
    keep = rows["segments"] == 1  # the first sequence of each row stays, everything else is replaced
    loud = np.where(rows["segments"] == 0, 1e3, 1.0)  # and padding is large

    def mix(ours, other):
        return {
            key: np.where(keep if ours[key].ndim == 2 else keep[..., None, None], ours[key], other[key])
            if ours[key].ndim > 1 and key not in ("segments", "targets", "contexts")
            else ours[key]
            for key in ours
        }

    other_floats = {
        key: (x * loud[..., None, None]).astype(np.float32) if x.ndim > 1 else x for key, x in other_floats.items()
    }
    call = output(implementation, "all", layout)
    out, mixed = call(floats, rows), call(mix(floats, other_floats), mix(rows, other_rows))
    assert_close(np.where(keep[..., None, None], mixed, 0), np.where(keep[..., None, None], out, 0))
    assert not np.any(np.where(rows["segments"][..., None, None] == 0, mixed, 0))


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@several
@seeds
def test_a_packed_sequence_equals_the_same_sequence_alone(layout, implementation, seed):
    floats, rows = random_case(seed, "all")
    call = output(implementation, "all", layout)
    packed = np.array(call(floats, rows))
    where = [(r, s) for r in range(ROWS) for s in np.unique(rows["segments"][r]) if s > 0][:ROWS]
    alone = {key: np.zeros_like(array) if array.ndim > 1 else array for key, array in (floats | rows).items()}
    for row, (r, s) in enumerate(where):
        tokens = np.flatnonzero(rows["segments"][r] == s)
        for key, array in (floats | rows).items():
            if array.ndim > 1:
                alone[key][row, : len(tokens)] = array[r, tokens]
    out = np.array(call({key: alone[key] for key in floats}, {key: alone[key] for key in rows}))
    for row, (r, s) in enumerate(where):
        tokens = np.flatnonzero(rows["segments"][r] == s)
        np.testing.assert_allclose(out[row, : len(tokens)], packed[r, tokens], atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@several
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, LENGTH - 1))
def test_future_items_do_not_change_past_outputs(layout, implementation, seed, cut):
    floats, rows = random_case(seed, "bias")
    other, _ = random_case(seed + 1, "bias")
    for key in "qkv":
        other[key][:, :cut] = floats[key][:, :cut]
    for key in ("position_table", "time_table"):
        other[key] = floats[key]
    later = {"key_times": 7 * rows["key_times"], "query_times": 7 * rows["query_times"]}
    later = {key: np.where(np.arange(LENGTH) < cut, rows[key], array) for key, array in later.items()}
    call = output(implementation, "bias", layout)
    np.testing.assert_allclose(call(floats, rows)[:, :cut], call(other, rows | later)[:, :cut], atol=1e-6)


def test_the_shipped_chunk_equals_the_reference_on_rows_of_several_chunks():
    rng = np.random.default_rng(0)
    segments = np.repeat([[1, 2, 0, 3]], [50, 60, 3, 57], axis=1)
    times = jnp.array(np.sort(rng.integers(0, 10**8, segments.shape)), jnp.int32)
    floats = {name: rng.normal(size=(1, 170, 1, 8)).astype(np.float32) for name in ("q", "k", "v")}
    floats |= {"position_table": rng.normal(size=60), "time_table": rng.normal(size=129)}

    def gradients(implementation):
        forward = lambda floats: hstu_attention(
            **floats, segments=jnp.array(segments), query_times=times, key_times=times, max_length=60,
            implementation=implementation,
        )  # fmt: skip
        return jax.jit(jax.grad(lambda floats: jnp.sum(forward(floats) ** 2)))(jax.tree.map(jnp.float32, floats))

    assert_close(gradients("xla"), gradients("reference"))


def test_long_rows_hold_no_tensor_of_length_squared():
    length, longest = 2048, 32
    segments, times = jnp.arange(length)[None] // longest + 1, jnp.arange(length)[None]
    q = jnp.ones((1, length, 1, 8))

    def loss(q, k, v, position_table, time_table):
        return hstu_attention(
            q, k, v, segments, max_length=longest, position_table=position_table, time_table=time_table,
            query_times=times, key_times=times, implementation="xla",
        ).sum()  # fmt: skip

    program = jax.jit(jax.value_and_grad(loss, argnums=range(5))).lower(q, q, q, jnp.ones(longest), jnp.ones(129))
    shapes = re.findall(r"\w\[([\d,]+)\]", program.compile().as_text())
    largest = max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes)
    assert largest <= 2 * q.size  # a chunk against the whole row would be 4 times, [L, L] 128 times as much


def test_bfloat16_inputs_give_a_close_bfloat16_result():
    floats, rows = random_case(3, "all")
    half = floats | {key: jnp.array(floats[key], jnp.bfloat16) for key in "qkv"}
    out, gradients = attention_and_gradients("xla", "all")(half, rows)
    assert out.dtype == jnp.bfloat16 and gradients["k"].dtype == jnp.bfloat16
    assert gradients["time_table"].dtype == jnp.float32
    rounded = jax.tree.map(lambda x: np.array(x, np.float32), half)
    expected = attention_and_gradients("reference", "all")(rounded, rows)
    assert_close(jax.tree.map(lambda x: np.array(x, np.float32), (out, gradients)), expected, atol=0.02)


def test_rows_shard_over_devices_without_gathering_them():
    floats, rows = random_case(0, "bias")
    tile = lambda x: np.concatenate([x] * 8)[:8] if x.ndim > 1 else x
    case = jax.tree.map(tile, (floats, rows))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec("data") if x.ndim > 1 else PartitionSpec()))
    call = jax.jit(lambda floats, rows: hstu_attention(**floats, **rows, **options("bias"), implementation="xla"))
    sharded = jax.tree.map(spread, case)
    assert not re.search(r"all-(gather|to-all|reduce)", call.lower(*sharded).compile().as_text())
    assert_close(call(*sharded), call(*case), atol=1e-6)
