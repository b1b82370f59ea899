"""The Mosaic GPU kernels beyond the tests that all share: refusals, bias tiles, buckets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import bucket_ranges
from pallas_kernels.arguments import Bias, Mask, Options, backend_arguments
from pallas_kernels.masks import time_bucket
from pallas_kernels.mosaic_gpu import attention as mosaic_gpu
from pallas_kernels.mosaic_gpu.attention import mosaic_gpu_attention
from pallas_kernels.mosaic_gpu.bias_tiles import bias_tiles
from pallas_kernels.mosaic_gpu.tiles import mosaic, ring
from pallas_kernels.visible_keys import visible_keys
from tests.pallas_kernels.lowering import CALLS, lowered
from tests.pallas_kernels.packed_rows import border_rows
from tests.pallas_kernels.subjects import make_case

needs_mosaic = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="Mosaic GPU kernels need jax >= 0.11"
)


def arrays(variant: str, widths: tuple[int, int] = (64, 64)):
    """Float and integer inputs of one row of 250 tokens with sequences of up to 65."""
    rows = border_rows(1, 250, 64)
    floats, rows, _ = make_case("mosaic", variant, rows, 0)
    a, v = widths
    widen = lambda x, n: x if x.ndim == 1 else np.pad(x, [(0, 0)] * 3 + [(0, n - x.shape[3])])
    floats = {name: widen(x, v if name == "v" else a) for name, x in floats.items()}
    return jax.tree.map(jnp.array, (floats, rows))


def attend(floats, rows, window=None):
    options = Options(max_length=65)
    return mosaic_gpu_attention(*backend_arguments(floats | rows, window), options)


@needs_mosaic
@pytest.mark.parametrize("widths", [(64, 64), (128, 128), (256, 256), (64, 128), (128, 64)])
def test_forward_and_backward_with_all_mask_rules_lower_for_a_gpu(widths):
    floats, rows = arrays("all", widths=widths)

    def call(floats, rows):
        out, backward = jax.vjp(lambda floats: attend(floats, rows, window=4), floats)
        return out, backward(out)

    assert lowered(call, floats, rows).count(CALLS["pallas_mosaic_gpu"]) == 4 + (sum(widths) > 256)


@needs_mosaic
def test_all_layers_of_a_shape_are_lowered_once():
    floats, rows = arrays("plain")

    def gradient(layers: int):
        def loss(q):
            for _ in range(layers):
                q = attend(floats | {"q": q}, rows)
            return q.astype(jnp.float32).sum()

        return jax.grad(loss)

    two, three = (
        lowered(gradient(layers), floats["q"]).count(CALLS["pallas_mosaic_gpu"])
        for layers in (2, 3)
    )
    assert two == three == 2  # the forward pass, and the gradient of q


@needs_mosaic
def test_a_slot_that_the_copy_engine_would_stop_at_is_refused():
    with pytest.raises(
        ValueError, match="slots of .4. int32: their bytes must be a multiple of 128"
    ):
        ring(mosaic().SMEM((2, 4), jnp.int32), 1)


@needs_mosaic
def test_other_dtypes_and_wide_heads_are_refused_with_the_reason():
    floats, rows = arrays("plain")
    with pytest.raises(NotImplementedError, match="bfloat16"):
        attend(jax.tree.map(jnp.float32, floats), rows)
    floats, rows = arrays("plain", widths=(64, 320))
    with pytest.raises(NotImplementedError, match="320"):
        attend(floats, rows)


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="for an older jax")
def test_an_older_jax_is_refused_with_the_reason():
    floats, rows = arrays("plain")
    with pytest.raises(NotImplementedError, match="0.11"):
        attend(floats, rows)


@pytest.mark.parametrize("variant", ["bias", "all"])
def test_bias_tiles_hold_half_the_bias_of_every_visible_pair(variant):
    floats, rows = arrays(variant)
    pad = lambda x: jnp.pad(x, [(0, 0), (0, 6)])
    targets = pad(rows["targets"]) if "targets" in rows else None
    visible = visible_keys(Mask(pad(rows["segments"]), targets))
    bias = Bias(
        floats["position_table"],
        floats["time_table"],
        pad(rows["query_times"]),
        pad(rows["key_times"]),
    )
    both = bias_tiles(visible, bias, 65, jnp.float32)
    assert both is not None
    tiles, lookup = (np.array(x) for x in both)
    i, j = np.indices((256, 256))
    first, end = (np.array(x)[0][:, None] for x in (visible.first, visible.end))
    seen = ((j >= first) & (j < end)) | ((i == j) & (first < 256))
    i, j = i[seen], j[seen]
    position = np.arange(256) if visible.position is None else np.array(visible.position)[0]
    distance = np.clip(position[i] - position[j], 0, len(floats["position_table"]) - 1)
    seconds = np.array(pad(rows["query_times"]))[0, i] - np.array(pad(rows["key_times"]))[0, j]
    bucket = np.minimum(time_bucket(jnp.array(seconds)), len(floats["time_table"]) - 1)
    expected = np.array(floats["position_table"])[distance] + np.array(floats["time_table"])[bucket]
    at = lookup[i // 128, 0] + lookup[i // 128, 1] * (j // 128)
    np.testing.assert_allclose(tiles[0, at, i % 128, j % 128], expected / 2, rtol=1e-6)


def test_bucket_limits_are_exact_and_ranges_hold_every_bucket_of_the_tile():
    limits = np.array(bucket_ranges.bucket_limits(129))
    assert int(time_bucket(jnp.array(bucket_ranges.LARGEST))) == bucket_ranges.REACHED_BUCKETS - 1
    reached = limits[1 : bucket_ranges.REACHED_BUCKETS]
    occurs = reached[:, 0] <= reached[:, 1]  # the first buckets hold no whole number of seconds
    assert np.array_equal(
        time_bucket(jnp.array(reached[occurs, 0])), np.arange(1, len(reached) + 1)[occurs]
    )
    assert np.array_equal(
        time_bucket(jnp.array(reached[occurs, 1])), np.arange(1, len(reached) + 1)[occurs]
    )

    rng = np.random.default_rng(0)
    _, rows = arrays("all")
    segments, targets = (jnp.pad(rows[n], [(0, 0), (0, 6)]) for n in ("segments", "targets"))
    visible = visible_keys(Mask(segments, targets))
    times = [jnp.array(rng.integers(0, 10**6, segments.shape), jnp.int32) for _ in range(2)]
    ranges = np.array(bucket_ranges.bucket_ranges(segments, visible, *times, 129, 64))[0]
    i, j = np.indices((256, 256))
    first, end = (np.array(x)[0][:, None] for x in (visible.first, visible.end))
    i, j = (x[((j >= first) & (j < end)) | ((i == j) & (first < 256))] for x in (i, j))
    bucket = np.array(time_bucket(times[0][0, i] - times[1][0, j]))
    low, high = ranges[i // 64, j // 64].T
    assert np.all((low <= bucket) & (bucket <= high))
    used = np.zeros((4, 4), bool)
    used[i // 64, j // 64] = True
    assert np.array_equal(used, ranges[..., 0] <= ranges[..., 1])


def test_default_blocks_fit_into_shared_memory():
    for a, v in ((64, 64), (128, 128), (256, 256), (25, 200), (200, 150)):
        q, k, stages, in_registers = mosaic_gpu.default_blocks(a, v, "bfloat16")
        a, v = (64 * -(-n // 64) for n in (a, v))
        tiles = q * (a if a == v else a + v) + stages * k * (a + v) + (0 if in_registers else q * k)
        assert 2 * tiles < 232448 - 1024
