"""The block-size table: the entry of a shape, and a new measurement."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from pallas_kernels import block_sizes, dispatch
from pallas_kernels.block_sizes import Blocks, key_of, measured, record

WIDE, NARROW = Blocks(128, 64, 8, 2), Blocks(64, 32, 4, 2)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """An empty table in place of the shipped one."""
    path = tmp_path / "table.json"
    path.write_text('{"entries": []}')
    monkeypatch.setattr(block_sizes, "TABLE", path)
    return path


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """`gpu(kind)` sets the current device, an H200 at first."""

    def become(kind: str) -> None:
        device = dispatch.Device("gpu", kind)
        monkeypatch.setattr(dispatch, "current_device", lambda: device)

    become("NVIDIA H200")
    return become


def key(length=4096, width=128, dtype="bfloat16"):
    x = jnp.zeros((1, length, 1, width), dtype)
    return key_of("pallas_triton", x, x)


def write(table, length: int, blocks: Blocks, milliseconds: float = 1.5) -> None:
    record(key(length), blocks._asdict(), milliseconds, "a test", table)


def ask(**shape) -> Blocks | None:
    found = measured(key(**shape))
    return None if found is None else Blocks(**found)


def test_a_shape_without_an_entry_has_no_measured_blocks(table):
    assert ask() is None


def test_an_entry_is_found_for_its_widths_dtype_and_device_only(table, gpu):
    write(table, 4096, WIDE)
    assert ask() == WIDE
    assert ask(width=100) == WIDE  # the same number of lanes
    assert ask(width=64) is None and ask(dtype="float32") is None
    gpu("NVIDIA A100")
    assert ask() is None


def test_the_nearest_length_counts(table):
    write(table, 1024, NARROW)
    write(table, 8192, WIDE)
    assert ask(length=256) == ask(length=1024) == ask(length=1500) == NARROW
    assert ask(length=4097) == ask(length=8192) == ask(length=16384) == WIDE


def test_a_new_measurement_replaces_the_old_one(table):
    write(table, 4096, WIDE, 1.5)
    write(table, 4096, NARROW, 1.2)
    assert ask() == NARROW
    (entry,) = json.loads(table.read_text())["entries"]
    assert entry["ms"] == 1.2


def test_the_shipped_table_is_readable_and_beside_the_code():
    assert block_sizes.TABLE.parent == Path(block_sizes.__file__).parent
    block_sizes._table(block_sizes.TABLE)
