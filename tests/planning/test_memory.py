import dataclasses

import numpy as np
import pytest

from gr_jax.config import (
    FSDP,
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    VocabularyConfig,
)
from gr_jax.planning import compiled_step, memory
from gr_jax.planning.plan import abstract_mesh, with_row_wise_tables
from gr_jax.planning.sizes import Sizes
from gr_jax.training import sharding
from tests.planning.small import small


def planned(
    config: Config, sizes: Sizes, data: int = 1, model: int = 1, platform: str = "cpu"
) -> dict[str, float]:
    state = compiled_step.abstract_state(config, sizes, abstract_mesh(data, model))
    return {
        part.what: part.bytes for part in memory.memory(config, sizes, state, platform=platform)
    }


def hashed(made: tuple[Config, Sizes]) -> tuple[Config, Sizes]:
    config, sizes = made
    rows = VocabularyConfig(kind="hashed", rows=20_000, hashes=2)
    return dataclasses.replace(config, vocabulary=rows), sizes


CASES = {
    "unrolled": small(rows=8, length=256, width=64, num_blocks=2, qk_width=32, v_width=32),
    "scanned and recomputed": small(
        width=64, num_blocks=2, qk_width=32, v_width=32, items=2000, remat=True, scan_blocks=True
    ),
    "large catalogue": small(rows=8, items=100_000),
    "hashed": hashed(small(rows=8, items=100_000)),
}


@pytest.mark.parametrize("name", CASES)
def test_planned_memory_is_within_ten_percent_of_what_xla_allocates(name):
    config, sizes = CASES[name]
    allocated = compiled_step.allocated(
        compiled_step.compile_step(config, sizes, sharding.make_mesh(config.mesh))
    )
    parts = planned(config, sizes)
    given = parts["parameters"] + parts["optimizer state"] + parts["batch"]
    if config.vocabulary.kind == "hashed":
        given += 4 * 2 * 100_096  # the map
    assert abs(given - allocated["argument"]) < 64  # the key and the step besides
    assert abs(sum(parts.values()) / allocated["peak"] - 1) < 0.1


def test_on_eight_devices_too():
    config, sizes = small(mesh=MeshConfig(data=8))
    allocated = compiled_step.allocated(
        compiled_step.compile_step(config, sizes, sharding.make_mesh(config.mesh))
    )
    assert abs(sum(planned(config, sizes, data=8).values()) / allocated["peak"] - 1) < 0.1


def test_state_is_divided_by_the_devices_that_the_rules_spread_it_over():
    config, sizes = small(width=64, num_blocks=4)
    whole, spread = planned(config, sizes), planned(config, sizes, data=4, model=2)
    table = 4 * 20_096 * 64
    dense = whole["parameters"] - table
    assert table / 8 < spread["parameters"] < table / 8 + dense
    fsdp = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, rules=FSDP))
    matrices = 4 * 4 * (64 * 96 + 32 * 64)
    rest = dense - matrices
    assert planned(fsdp, sizes, data=4, model=2)["parameters"] == (table + matrices) / 8 + rest
    assert spread["optimizer state"] == pytest.approx(2 * spread["parameters"], abs=64)


def test_recomputed_blocks_keep_their_input_alone_on_a_gpu():
    config, sizes = small(num_blocks=8)
    kept = planned(config, sizes, platform="gpu")["activations kept"]
    remat = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=True))
    assert (
        planned(remat, sizes, platform="gpu")["activations kept"]
        == 8 * 4 * sizes.tokens * 32
        < kept / 3
    )


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("bfloat16", 2)])
def test_a_row_wise_rule_has_one_moment_a_row_and_no_gradient_as_large_as_the_table(dtype, size):
    config, sizes = small(items=1_000_000)
    dense = planned(config, sizes, data=8, platform="gpu")
    row_wise = with_row_wise_tables(config)
    row_wise = dataclasses.replace(
        row_wise, optimizer=dataclasses.replace(row_wise.optimizer, table_dtype=dtype)
    )
    with_rows = planned(row_wise, sizes, data=8, platform="gpu")
    table = 4 * 1_000_064 * 32 / 8
    assert dense["parameters"] - with_rows["parameters"] == table * (4 - size) / 4
    assert dense["optimizer state"] - with_rows["optimizer state"] == pytest.approx(
        2 * table - table / 32, abs=64
    )
    dense_gradients, few = (
        sum(n for what, n in x.items() if "gradients" in what) for x in (dense, with_rows)
    )
    assert dense_gradients > table > 5 * few


def test_other_models_are_left_to_the_compiler():
    config, sizes = small()
    for other in (
        ModelConfig(kind="sasrec", width=32, num_heads=2),
        ModelConfig(width=32, swiglu_width=64),
    ):
        with pytest.raises(ConfigError, match="the formulas know hstu without SwiGLU; --compile"):
            planned(dataclasses.replace(config, model=other), sizes)


def test_windows_of_attention_are_counted_as_xla_cuts_them():
    config = Config(data=DataConfig(max_length=100, row_length=256), loss=LossConfig(group=8))
    mask = np.zeros((256, 256), bool)
    for low in range(0, 256, 64):
        mask[low : low + 64, max(0, low - 99) : low + 64] = True
    keys, pairs = memory.window_sizes(config, rows=3.0)
    assert pairs == 3 * mask.sum()
    assert keys == pairs / 64
