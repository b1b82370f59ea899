"""Attention to a cache, in XLA and in the interpreter, against the dense specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import hstu_attention, hstu_cached_attention
from pallas_kernels.arguments import Bias, Options
from pallas_kernels.block_sizes import Blocks
from pallas_kernels.cached import attention as cached
from pallas_kernels.cached.attention import Queries
from pallas_kernels.cached.triton import triton_cached_attention
from tests.pallas_kernels.lowering import lowered

N, NEW, HEADS, A, V = 37, 5, 2, 5, 3
HISTORY = (N, 20, 0)  # cached tokens of each row; the candidates or the last tokens come on top
HOW = {
    "xla": dict(implementation="xla"),
    "triton": dict(implementation="pallas_triton", interpret=True),
}
SHAPES = {  # of a large model's cache, to lower for a GPU: rows, queries, room, heads, A, V
    "append": (1, 1, 1024, 4, 64, 64),
    "candidates": (2, 100, 1000, 2, 25, 40),
}


def sequences(seed: int, tables: bool, targets: bool):
    """Arguments of `hstu_attention` for HISTORY + NEW tokens a row, and options of both ops."""
    rng = np.random.default_rng(seed)
    shape = (len(HISTORY), N + NEW)
    vectors = {
        n: rng.normal(size=(*shape, HEADS, V if n == "v" else A)).astype(np.float32) for n in "qkv"
    }
    index = np.arange(N + NEW)
    length = np.array(HISTORY)[:, None]
    rows = {"segments": (index < length + NEW).astype(np.int32)}
    if targets:
        rows["targets"] = (index >= length) & (index < length + NEW)
    options = dict(max_length=N + NEW, scale=0.4)
    if tables:
        rows["key_times"] = np.cumsum(rng.integers(0, 1000, shape), 1).astype(np.int32)
        rows["query_times"] = rows["key_times"] + rng.integers(0, 1000, shape).astype(np.int32)
        options["position_table"] = jnp.array(
            rng.normal(size=N - 9), jnp.float32
        )  # shorter than the longest distance
        options["time_table"] = jnp.array(
            rng.normal(size=20), jnp.float32
        )  # shorter than the largest bucket
    return jax.tree.map(jnp.array, (vectors, rows)), options


def last_tokens(x):
    """The NEW tokens after the history of each row."""
    return jnp.stack([x[row, n : n + NEW] for row, n in enumerate(HISTORY)])


def store(x):
    return jnp.swapaxes(x, 1, 2)


WINDOWS = pytest.mark.parametrize("window", [None, 4])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("tables", [False, True])
@WINDOWS
def test_appended_tokens_equal_one_attention(how, tables, window):
    (vectors, rows), options = sequences(1, tables, targets=False)
    options["window"] = window
    expected = hstu_attention(**vectors, **rows, **options, implementation="reference")
    positions = jnp.array(HISTORY)[:, None] + jnp.arange(NEW)
    bias = dict(positions=positions)
    if tables:
        bias |= dict(query_times=last_tokens(rows["query_times"]), key_times=rows["key_times"])
    q, k, v = last_tokens(vectors["q"]), store(vectors["k"]), store(vectors["v"])
    found = hstu_cached_attention(q, k, v, positions + 1, **bias, **options, **HOW[how])
    np.testing.assert_allclose(found, last_tokens(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("tables", [False, True])
@WINDOWS
def test_candidates_equal_one_attention_and_share_their_bias(how, tables, window):
    (vectors, rows), options = sequences(2, tables, targets=True)
    options["window"] = window
    ends = jnp.array(HISTORY)[:, None]
    bias = dict(positions=ends)
    if tables:
        asked = last_tokens(rows["key_times"])[:, -1:] + 60
        at = rows["targets"]
        rows["query_times"] = jnp.where(at, asked, rows["query_times"])
        own = last_tokens(rows["key_times"])
        bias |= dict(query_times=asked, key_times=rows["key_times"], own_times=own)
    expected = hstu_attention(**vectors, **rows, **options, implementation="reference")
    q, own_k, own_v = (last_tokens(vectors[n]) for n in "qkv")
    k, v = store(vectors["k"]), store(vectors["v"])
    found = hstu_cached_attention(
        q, k, v, ends, own_k=own_k, own_v=own_v, **bias, **options, **HOW[how]
    )
    np.testing.assert_allclose(found, last_tokens(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tables", [False, True])
def test_heads_one_by_one_and_heads_at_once_give_the_same(tables, monkeypatch):
    (vectors, rows), options = sequences(5, tables, targets=False)
    positions = jnp.array(HISTORY)[:, None] + jnp.arange(NEW)
    bias = dict(positions=positions)
    if tables:
        bias |= dict(query_times=last_tokens(rows["query_times"]), key_times=rows["key_times"])
    q, k, v = last_tokens(vectors["q"]), store(vectors["k"]), store(vectors["v"])
    outs = []
    for tiny in (0, 100):
        monkeypatch.setattr(cached, "TINY", tiny)
        outs.append(hstu_cached_attention(q, k, v, positions + 1, **bias, **options))
    assert outs[0].shape == (len(HISTORY), NEW, HEADS, V)
    np.testing.assert_allclose(*outs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("splits", [1, 3])
@WINDOWS
def test_keys_divided_among_programs_give_the_same(splits, window):
    (vectors, rows), options = sequences(3, True, targets=False)
    q, k, v = last_tokens(vectors["q"]), store(vectors["k"]), store(vectors["v"])
    positions = jnp.array(HISTORY)[:, None] + jnp.arange(NEW)
    times = dict(query_times=last_tokens(rows["query_times"]), key_times=rows["key_times"])
    expected = hstu_cached_attention(
        *(q, k, v, positions + 1),
        **(dict(positions=positions, window=window) | times | options),
        implementation="xla",
    )
    starts = None if window is None else jnp.maximum(positions - window, 0)
    queries = Queries(starts, positions + 1, positions)
    bias = Bias(options.pop("position_table"), options.pop("time_table"), **times)
    settings = Options(**options, interpret=True, blocks=Blocks(16, 16, 4, 1))
    found = triton_cached_attention(q, k, v, queries, bias, settings, splits=splits)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
@WINDOWS
def test_the_kernel_lowers_for_a_gpu(shape, dtype, window):
    rows, queries, room, heads, a, v = SHAPES[shape]
    array = jax.ShapeDtypeStruct
    ints = array((rows, 1), jnp.int32)
    args = [array((rows, queries, heads, a), dtype), array((rows, heads, room, a), "bfloat16")]
    args += [array((rows, heads, room, v), "bfloat16")]
    args += [Queries(None if window is None else ints, ints, ints)]
    tables = [array((n,), jnp.float32) for n in (room, 129)]
    args += [Bias(*tables, ints, array((rows, room), jnp.int32))]
    call = lambda *args: triton_cached_attention(*args, Options(max_length=room))
    assert "hstu_cached_forward" in lowered(call, *args)


def test_bfloat16_storage_keeps_float32_queries_and_sums():
    (vectors, _), options = sequences(4, False, targets=False)
    ends = jnp.array(HISTORY)[:, None]
    q, k, v = last_tokens(vectors["q"]), store(vectors["k"]), store(vectors["v"])
    expected = hstu_cached_attention(q, k, v, ends, **options)
    halves = (x.astype(jnp.bfloat16) for x in (k, v))
    found = hstu_cached_attention(q, *halves, ends, **options)
    assert found.dtype == jnp.float32
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(implementation="cuda"),
            "implementation='cuda': must be None or one of xla, pallas_triton",
        ),
        (dict(max_length=0), "max_length=0"),
        (dict(window=0), "window=0"),
        (dict(window=2), "window needs positions"),
        (dict(position_table=jnp.ones(3)), "position_table needs positions"),
        (dict(time_table=jnp.ones(3)), "time_table needs query_times and key_times"),
        (dict(own_k=jnp.ones((1, 2, 2, 3))), "own_k and own_v belong together"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    options = dict(max_length=4) | changes
    q, k, v = jnp.ones((1, 2, 2, 3)), jnp.ones((1, 2, 4, 3)), jnp.ones((1, 2, 4, 5))
    with pytest.raises(ValueError, match=message):
        hstu_cached_attention(q, k, v, jnp.ones((1, 1), int), **options)


def test_a_named_implementation_never_falls_back():
    q, k, v = jnp.ones((1, 2, 2, 3)), jnp.ones((1, 2, 4, 3)), jnp.ones((1, 2, 4, 5))
    with pytest.raises(
        NotImplementedError, match="'pallas_triton' cannot run here: it needs an NVIDIA GPU"
    ):
        hstu_cached_attention(
            q, k, v, jnp.ones((1, 1), int), max_length=4, implementation="pallas_triton"
        )
