"""Examples in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    file for name in ("gr_jax", "pallas_kernels") for file in sorted((ROOT / name).rglob("*.py"))
]
MODULES = [
    ".".join(f.relative_to(ROOT).with_suffix("").parts) for f in FILES if ">>> " in f.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    module = importlib.import_module(name.removesuffix(".__init__"))
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed
