"""The Mosaic GPU kernels in their interpreter: numbers, races, and that they lower for a GPU that is not there.

Rounding: bfloat16 keeps 8 bits, so errors are compared with the largest entry and with 2^-8.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from pallas_kernels import bucket_ranges, mosaic_gpu, mosaic_gpu_tiles
from pallas_kernels.bias_tiles import bias_tiles
from pallas_kernels.masks import time_bucket
from pallas_kernels.mosaic_gpu import mosaic_gpu_attention
from pallas_kernels.mosaic_gpu_tiles import MosaicBlocks
from pallas_kernels.reference import reference_attention
from pallas_kernels.visible_keys import visible_keys

LENGTH, LONGEST = 250, 90  # padded to 256: two blocks of queries
BLOCKS = MosaicBlocks(128, 64, 2, False)
TABLES = {"position_table", "time_table", "query_times", "key_times"}
VARIANTS = {
    "plain": set(),
    "bias": TABLES,
    "targets": {"position_table", "targets"},
    "all": TABLES | {"targets", "contexts"},
}

needs_mosaic = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="Mosaic GPU kernels need jax >= 0.11")


def packed_row(variant: str, seed: int = 0, heads: int = 1, widths: tuple[int, int] = (64, 64)):
    """Returns float and integer inputs of one row: random sequences, then single tokens; padding is NaN."""
    rng = np.random.default_rng(seed)
    lengths = [*rng.integers(2, LONGEST, 3), 1, 1, 1]
    segments, targets, contexts = (np.zeros((1, LENGTH), kind) for kind in (np.int32, bool, bool))
    start = 0
    for n, tokens in enumerate(lengths):
        stop = min(start + int(tokens), LENGTH - 5)
        segments[0, start:stop] = n + 1
        third = (stop - start) // 3
        targets[0, stop - third : stop] = True
        contexts[0, start : start + third // 2] = True
        start = stop + n % 2
    a, v = widths
    floats = {name: rng.normal(size=(1, LENGTH, heads, v if name == "v" else a)) for name in "qkv"}
    floats = {name: jnp.array(x, jnp.bfloat16) for name, x in floats.items()}
    floats = {name: jnp.where(segments[..., None, None] == 0, jnp.nan, x) for name, x in floats.items()}
    floats["position_table"] = jnp.array(rng.normal(size=LONGEST - 20), jnp.float32)
    floats["time_table"] = jnp.array(rng.normal(size=25), jnp.float32)
    key_times = np.cumsum(rng.integers(0, 1000, segments.shape), 1)
    rows = {"segments": segments, "targets": targets, "contexts": contexts, "key_times": key_times}
    rows["query_times"] = key_times + rng.integers(-500, 1000, segments.shape)
    rows = {name: jnp.array(x, x.dtype if x.dtype == bool else jnp.int32) for name, x in rows.items()}
    keep = VARIANTS[variant] | {"q", "k", "v", "segments"}
    return {k: x for k, x in floats.items() if k in keep}, {k: x for k, x in rows.items() if k in keep}


def output_and_gradients(attend, floats, rows, **options):
    """Returns the output, and the gradients of all floats for a fixed cotangent that is NaN at padding."""

    def call(floats, rows):
        out, backward = jax.vjp(lambda floats: attend(**floats, **rows, **options), floats)
        cotangent = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(jnp.bfloat16)
        return out, backward(cotangent.astype(out.dtype))[0]

    return jax.jit(call)(floats, rows)


def settings(variant: str) -> dict:
    window = {"window": 30, "full_window_tail": 4} if "targets" in VARIANTS[variant] else {}
    return {"max_length": LONGEST, "scale": 0.2} | window


@pytest.fixture
def race_detector(monkeypatch):
    """Makes an unordered read and write of shared memory an error."""
    monkeypatch.setattr(mosaic_gpu_tiles, "INTERPRETER", {"detect_races": True})


@needs_mosaic
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients_equal_the_reference_of_the_same_rounded_inputs_without_races(variant, race_detector):
    floats, rows = packed_row(variant)
    ours = output_and_gradients(mosaic_gpu_attention, floats, rows, **settings(variant), interpret=True, blocks=BLOCKS)
    exact = {name: x.astype(jnp.float32) for name, x in floats.items()}
    expected = output_and_gradients(reference_attention, exact, rows, **settings(variant))
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for (path, x), y in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        x, y = np.array(x, np.float32), np.array(y)
        error = np.abs(x - y) / np.abs(y).max()
        assert error.max() < 2e-2, jax.tree_util.keystr(path)
        assert error.mean() < 2**-9, jax.tree_util.keystr(path)  # rounding, not a lost tile
        if x.ndim == 4:
            assert not x[np.array(rows["segments"]) == 0].any(), jax.tree_util.keystr(path)


@needs_mosaic
def test_narrow_heads_of_different_widths_and_blocks_of_64_queries():
    floats, rows = packed_row("plain", heads=2, widths=(25, 50))
    blocks = MosaicBlocks(64, 128, 2, False)
    out = mosaic_gpu_attention(**floats, **rows, **settings("plain"), interpret=True, blocks=blocks)
    exact = {name: x.astype(jnp.float32) for name, x in floats.items()}
    expected = np.array(reference_attention(**exact, **rows, **settings("plain")))
    assert out.shape == expected.shape and out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.array(out, np.float32), expected, atol=1e-2 * np.abs(expected).max())


@needs_mosaic
def test_rows_of_padding_give_zeros_and_zero_gradients():
    floats, rows = packed_row("bias")
    rows["segments"] = jnp.zeros_like(rows["segments"])
    leaves = output_and_gradients(mosaic_gpu_attention, floats, rows, **settings("bias"), interpret=True, blocks=BLOCKS)
    assert not any(np.any(np.array(x, np.float32)) for x in jax.tree.leaves(leaves))


@needs_mosaic
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("variant", ["plain", "all"])
def test_forward_and_backward_lower_for_a_gpu(variant, width):
    floats, rows = packed_row(variant, heads=2, widths=(width, width))

    def call(floats, rows):
        attend = lambda floats: mosaic_gpu_attention(**floats, **rows, **settings(variant))
        out, backward = jax.vjp(attend, floats)
        return out, backward(out)

    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (floats, rows))
    with jax.sharding.use_abstract_mesh(mesh):
        text = jax.jit(call).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    kernels = 3 + (variant == "all") + (width == 256)  # wide heads have dk and dv in kernels of their own
    assert text.count("mosaic_gpu_v2") == kernels


@needs_mosaic
def test_other_dtypes_and_wide_heads_are_refused_with_the_reason():
    floats, rows = packed_row("plain")
    with pytest.raises(NotImplementedError, match="bfloat16"):
        mosaic_gpu_attention(**jax.tree.map(jnp.float32, floats), **rows, max_length=LONGEST)
    floats, rows = packed_row("plain", widths=(64, 320))
    with pytest.raises(NotImplementedError, match="320"):
        mosaic_gpu_attention(**floats, **rows, max_length=LONGEST)


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="for an older jax")
def test_an_older_jax_is_refused_with_the_reason():
    floats, rows = packed_row("plain")
    with pytest.raises(NotImplementedError, match="0.11"):
        mosaic_gpu_attention(**floats, **rows, max_length=LONGEST)


@pytest.mark.parametrize("variant", ["bias", "all"])
def test_bias_tiles_hold_half_the_bias_of_every_visible_pair(variant):
    floats, rows = packed_row(variant)
    pad = lambda x: jnp.pad(x, [(0, 0), (0, 6)])
    flags = [pad(rows[name]) if name in rows else None for name in ("targets", "contexts")]
    visible = visible_keys(pad(rows["segments"]), *flags)
    both = bias_tiles(
        visible, floats["position_table"], floats["time_table"], pad(rows["query_times"]), pad(rows["key_times"]),
        max_length=LONGEST, ahead="contexts" in rows, dtype=jnp.float32,
    )  # fmt: skip
    assert both is not None
    tiles, lookup = (np.array(x) for x in both)
    i, j = np.indices((256, 256))
    first, end = (np.array(x)[0][:, None] for x in (visible.first, visible.end))
    seen = ((j >= first) & (j < end)) | ((i == j) & (end > 0))
    i, j = i[seen], j[seen]
    position = np.arange(256) if visible.position is None else np.array(visible.position)[0]
    distance = np.clip(position[i] - position[j], 0, LONGEST - 21)
    seconds = np.array(pad(rows["query_times"]))[0, i] - np.array(pad(rows["key_times"]))[0, j]
    bucket = np.minimum(time_bucket(jnp.array(seconds)), 24)
    expected = np.array(floats["position_table"])[distance] + np.array(floats["time_table"])[bucket]
    at = lookup[i // 128, 0] + lookup[i // 128, 1] * (j // 128)
    np.testing.assert_allclose(tiles[0, at, i % 128, j % 128], expected / 2, rtol=1e-6)


def test_bucket_limits_are_exact_and_ranges_hold_every_bucket_of_the_tile():
    limits = np.array(bucket_ranges.bucket_limits(129))
    assert int(time_bucket(jnp.array(bucket_ranges.LARGEST))) == bucket_ranges.REACHED_BUCKETS - 1
    reached = limits[1 : bucket_ranges.REACHED_BUCKETS]
    occurs = reached[:, 0] <= reached[:, 1]  # the first buckets hold no whole number of seconds
    assert np.array_equal(time_bucket(jnp.array(reached[occurs, 0])), np.arange(1, len(reached) + 1)[occurs])
    assert np.array_equal(time_bucket(jnp.array(reached[occurs, 1])), np.arange(1, len(reached) + 1)[occurs])

    rng = np.random.default_rng(0)
    _, rows = packed_row("all")
    segments, targets, contexts = (jnp.pad(rows[n], [(0, 0), (0, 6)]) for n in ("segments", "targets", "contexts"))
    visible = visible_keys(segments, targets, contexts)
    times = [jnp.array(rng.integers(0, 10**6, segments.shape), jnp.int32) for _ in range(2)]
    ranges = np.array(bucket_ranges.bucket_ranges(segments, visible, *times, 129, 64))[0]
    i, j = np.indices((256, 256))
    first, end = (np.array(x)[0][:, None] for x in (visible.first, visible.end))
    i, j = (x[((j >= first) & (j < end)) | ((i == j) & (end > 0))] for x in (i, j))
    bucket = np.array(time_bucket(times[0][0, i] - times[1][0, j]))
    low, high = ranges[i // 64, j // 64].T
    assert np.all((low <= bucket) & (bucket <= high))
    used = np.zeros((4, 4), bool)
    used[i // 64, j // 64] = True
    assert np.array_equal(used, ranges[..., 0] <= ranges[..., 1])


def test_default_blocks_fit_into_shared_memory():
    for a, v in ((64, 64), (128, 128), (256, 256), (25, 200)):
        q, k, stages, in_registers = mosaic_gpu.default_blocks(a, v, "bfloat16")
        a, v = (64 * -(-n // 64) for n in (a, v))
        tiles = q * max(a, v) + stages * k * (a + v) + (0 if in_registers else q * k)
        assert 2 * tiles < 232448 - 1024
