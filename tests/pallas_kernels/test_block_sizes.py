"""The block-size table: what it answers, and what the tuner writes."""

import json
import sys
import types
from pathlib import Path

import pytest

from pallas_kernels import block_sizes, specs
from pallas_kernels.bench import tuning
from pallas_kernels.block_sizes import Blocks, choose, key_of, record

WIDE, NARROW = Blocks(128, 64, 8, 2), Blocks(64, 32, 4, 2)
RULE = Blocks(16, 16, 4, 1)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """An empty table, and a rule of the kernel that always gives RULE."""
    path = tmp_path / "table.json"
    path.write_text('{"entries": []}')
    monkeypatch.setattr(block_sizes, "TABLE", path)
    module = types.SimpleNamespace(default_blocks=lambda a, v, dtype: RULE)
    monkeypatch.setitem(sys.modules, "pallas_kernels.triton", module)
    return path


def ask(length=4096, width=128, dtype="bfloat16", device="NVIDIA H200"):
    return choose("pallas_triton", width, width, length, dtype, device)


def test_without_an_entry_the_rule_of_the_kernel_decides(table):
    assert ask() == RULE


def test_the_tuner_s_entry_is_found_again(table):
    record(
        key_of("pallas_triton", 128, 128, 4096, "bfloat16", "NVIDIA H200"),
        WIDE,
        1.5,
        "a test",
        table,
    )
    assert ask() == WIDE
    assert ask(width=100) == WIDE  # as many lanes
    assert ask(width=64) == ask(dtype="float32") == ask(device="NVIDIA A100") == RULE


def test_the_nearest_length_counts(table):
    for length, blocks in ((1024, NARROW), (8192, WIDE)):
        record(
            key_of("pallas_triton", 128, 128, length, "bfloat16", "NVIDIA H200"),
            blocks,
            1.5,
            "a test",
            table,
        )
    assert ask(256) == ask(1024) == ask(1500) == NARROW
    assert ask(4097) == ask(8192) == ask(16384) == WIDE


def test_a_new_measurement_replaces_the_old_one(table):
    key = key_of("pallas_triton", 128, 128, 4096, "bfloat16", "NVIDIA H200")
    record(key, WIDE, 1.5, "a test", table)
    record(key, NARROW, 1.2, "a test", table)
    assert ask() == NARROW
    (entry,) = json.loads(table.read_text())["entries"]
    assert entry["ms"] == 1.2


def test_the_shipped_table_is_readable_and_beside_the_code():
    assert block_sizes.TABLE.parent == Path(block_sizes.__file__).parent
    block_sizes._table(block_sizes.TABLE)


@pytest.mark.parametrize("name", ["ml_1m-large", "4x128-l4096", "4x256-l4096-bias"])
@pytest.mark.parametrize("implementation", ["pallas_triton", "pallas_mosaic_gpu"])
def test_the_tuner_tries_several_but_not_many_block_sizes(implementation, name):
    found = tuning.candidates(implementation, specs.SPECS[name])
    assert 2 <= len(found) <= 24
    assert len(set(found)) == len(found)
