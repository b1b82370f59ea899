"""The named shapes: lengths, sparsity, inputs and operation counts."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import hstu_attention, specs
from pallas_kernels.specs import SPECS

PACKED = [name for name, spec in SPECS.items() if spec.median and not spec.bias]
SMALL = ("tiny-bias", "ml_1m-large-bias", "books", "4x64-sparse95")


@pytest.mark.parametrize("percent", [50, 80, 95])
@pytest.mark.parametrize("heads", ["4x64", "4x128", "4x256", "8x64"])
def test_skewed_shapes_have_the_sparsity_of_their_name(heads, percent):
    spec = SPECS[f"{heads}-sparse{percent}"]
    segments = specs.inputs(replace(spec, heads=1, qk_width=1, v_width=1))["segments"]
    tokens = [np.bincount(row)[1:] for row in segments]
    tokens = np.concatenate(tokens)
    built = 1 - (tokens.astype(float) ** 2).sum() / (len(tokens) * spec.max_length**2)
    assert abs(100 * built - percent) < 2
    assert abs(specs.sparsity(spec) - built) < 1e-9


@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_are_nearly_full(name):
    spec = SPECS[name]
    fill = sum(specs.lengths(spec)) / (spec.rows * spec.length)
    assert 0.9 < fill <= 1


@pytest.mark.parametrize("name", SMALL)
def test_inputs_hold_the_sequences_of_the_spec_back_to_back(name):
    spec = SPECS[name]
    arrays = specs.inputs(spec, seed=3)
    segments = arrays["segments"]
    assert arrays["q"].shape == (spec.rows, spec.length, spec.heads, spec.qk_width)
    assert arrays["v"].dtype == jnp.dtype(spec.dtype)
    found = sorted((int(n) for row in segments for n in np.bincount(row)[1:]), reverse=True)
    assert found == list(specs.lengths(spec))
    assert np.all((np.diff(segments, axis=1) >= 0) | (segments[:, 1:] == 0))  # 1 1 2 2 .. 0 0
    if spec.bias:
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0)
        assert np.all((arrays["key_times"][:, 1:] == arrays["query_times"][:, :-1])[same])
        assert np.all(arrays["query_times"] >= arrays["key_times"])


def test_inputs_repeat_with_the_seed():
    one, two, other = (specs.inputs(SPECS["tiny-bias"], seed) for seed in (5, 5, 6))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["q"], other["q"])


def test_inputs_are_arguments_of_the_op():
    spec = SPECS["tiny-bias"]
    out = hstu_attention(
        **jax.tree.map(jnp.array, specs.inputs(spec)), **specs.options(spec), implementation="xla"
    )
    assert out.shape == (spec.rows, spec.length, spec.heads, spec.v_width)


def test_operations_follow_the_causal_half_convention():
    spec = SPECS["4x128-l4096"]
    dense = (
        2 * 2 * 16 * 4096**2 * 4 * 128
    )  # two matmuls of every query with every key, 16 rows, 4 heads
    assert specs.flops(spec) == dense / 2
    assert specs.flops(spec, backward=True) == 2.5 * dense / 2
    assert specs.bytes_floor(spec) == 65536 * (4 * 4 * 128 * 2 + 4)


def test_padded_shapes_hold_the_users_of_their_packed_shape():
    packed, padded = SPECS["4x128-sparse80"], SPECS["4x128-sparse80-padded"]
    assert len(specs.lengths(packed)) == padded.rows == len(specs.lengths(padded))
    assert specs.flops(packed) / specs.flops(padded) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    "file,variant,name",
    [
        ("ml_1m", "base", "ml_1m-base"),
        ("ml_1m", "large", "ml_1m-large"),
        ("amazon", "books", "books"),
        ("amazon", "books-large", "books-large"),
    ],
)
def test_data_set_shapes_have_the_heads_and_lengths_of_the_configs(file, variant, name):
    path = Path(__file__).resolve().parents[2] / "configs" / f"{file}.py"
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(file, path))
    module.__loader__.exec_module(module)
    config, spec = module.get_config(variant), SPECS[name]
    model = config.model
    assert (spec.heads, spec.qk_width, spec.v_width) == (
        model.num_heads,
        model.qk_width,
        model.v_width,
    )
    assert (spec.length, spec.max_length) == (config.data.row_length, config.data.max_length)
    assert spec.dtype == model.compute_dtype
