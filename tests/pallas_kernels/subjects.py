"""The implementations as the shared tests call them: at small block sizes, GPU kernels interpreted.

A test compares `results(subject, ..)` with `expected(..)`, the dense specification in float64.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch, xla
from pallas_kernels.arguments import Options, backend_arguments
from pallas_kernels.block_sizes import Blocks
from pallas_kernels.mosaic_gpu import tiles
from pallas_kernels.mosaic_gpu.tiles import MosaicBlocks
from pallas_kernels.reference import reference_attention
from tests.pallas_kernels.packed_rows import Rows

TABLES = {"position_table", "time_table"}
FLOATS = ("q", "k", "v", "position_table", "time_table")
# What a case has beside q, k, v and segments, and its options.
VARIANTS: dict[str, tuple[set[str], dict[str, int]]] = {
    "plain": (set(), {}),
    "position": ({"position_table"}, {}),
    "bias": (TABLES, {}),
    "window": (set(), {"window": 4}),
    "targets": (TABLES | {"targets"}, {}),
    "all": (TABLES | {"targets"}, {"window": 4}),
}


class Subject(NamedTuple):
    """One implementation with the sizes of its test cases.

    Attributes:
      backend: called as the implementation is.
      length, block: tokens of a row; of a block, its borders are tested.
      rows: R.
      heads, widths: H; A and V.
      dtype: of q, k and v.
      tolerance: largest error of an entry, over the largest entry of its array. The gradient of a
        table, whose terms may cancel to any size, over that of q or k at least: sums of the same
        terms.
      variants: those that are tested; each is compiled once.
      jit: True if the backend can be traced.
      gradients: whether it has any.
    """

    backend: Callable[..., Any]
    length: int
    block: int
    rows: int = 7
    heads: int = 2
    widths: tuple[int, int] = (5, 3)
    dtype: str = "float32"
    tolerance: float = 1e-5
    variants: tuple[str, ...] = tuple(VARIANTS)
    jit: bool = True
    gradients: bool = True

    def attend(self, arrays: dict, window: int | None = None, **options):
        """The output of named arrays, those of `hstu_attention`."""
        return self.backend(*backend_arguments(arrays, window), Options(**options))


def _xla(max_unrolled: int) -> Callable[..., Any]:
    """Small chunks, so that a short row has several, unrolled or scanned."""

    def attend(*args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(xla, "CHUNK", 16)
            patch.setattr(xla, "MAX_UNROLLED", max_unrolled)
            return xla.xla_attention(*args)

    return attend


def _triton(blocks: Blocks) -> Callable[..., Any]:
    return lambda *args: dispatch.load("pallas_triton")(
        *args[:-1], args[-1]._replace(interpret=True, blocks=blocks)
    )


def _mosaic(blocks: MosaicBlocks) -> Callable[..., Any]:
    """With unordered reads and writes of shared memory as errors."""

    def attend(*args):
        options = args[-1]._replace(interpret=True, blocks=blocks)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles, "INTERPRETER", {"detect_races": True})
            return dispatch.load("pallas_mosaic_gpu")(*args[:-1], options)

    return attend


def _jax_triton(*args):
    """In Triton's interpreter, which reads TRITON_INTERPRET when triton is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "jax_triton", types.SimpleNamespace(triton_call=_triton_call))
        from pallas_kernels.jax_triton import kernel as jax_triton_kernel

        log = lambda x: jax_triton_kernel.tl.log(x)  # libdevice cannot be interpreted
        patch.setattr(jax_triton_kernel, "libdevice", types.SimpleNamespace(log=log))
        options = args[-1]._replace(blocks=Blocks(16, 32, 4, 1))
        return dispatch.load("jax_triton")(*args[:-1], options)


class _Tensor:
    """The part of a torch tensor that Triton's interpreter uses, over a numpy array.

    Kernels read and write the array in place.
    """

    def __init__(self, array: np.ndarray):
        self.array, self.dtype = array, array.dtype

    def data_ptr(self):
        return self.array.ctypes.data

    def untyped_storage(self):
        return self

    cpu = untyped_storage

    def new_empty(self, size, device):
        return _Tensor(np.empty(size, self.dtype))

    def set_(self, storage, offset, size, stride):
        self.array = storage.array

    def copy_(self, other):
        assert other.array is self.array

    storage_offset = size = stride = lambda self: None


def _triton_call(*args, kernel, out_shape, grid, num_warps, num_stages, **sizes):
    """Stands in for `jax_triton.triton_call`."""
    out = _Tensor(np.full(out_shape.shape, np.nan, out_shape.dtype))
    kernel[grid](*(_Tensor(np.array(x)) for x in args), out, **sizes)
    return jnp.array(out.array)


# fmt: off
SUBJECTS = {
    "reference": Subject(reference_attention, 40, 16),
    "xla": Subject(_xla(8), 40, 16),
    "xla-scanned": Subject(_xla(1), 40, 16),
    "triton": Subject(_triton(Blocks(16, 16, 4, 1)), 40, 16),
    "triton-32x16": Subject(
        _triton(Blocks(32, 16, 4, 1)), 64, 32, widths=(25, 50), variants=("bias", "all")
    ),
    "mosaic": Subject(
        _mosaic(MosaicBlocks(128, 64, 2, False)), 250, 64, 1, 1, (64, 64), "bfloat16", 2e-2,
        variants=("position", "bias", "window", "targets", "all"),
    ),
    "mosaic-64x128": Subject(
        _mosaic(MosaicBlocks(64, 128, 2, False)), 250, 64, 1, 2, (25, 50), "bfloat16", 2e-2,
        variants=("plain",),
    ),
    "jax-triton": Subject(_jax_triton, 40, 16, jit=False, gradients=False),
}
# fmt: on


def _skipped(name: str):
    """Marks for an implementation that cannot run in this process."""
    if name.startswith("mosaic"):
        return [
            pytest.mark.skipif(
                jax.__version_info__ < (0, 11), reason="Mosaic GPU kernels need jax >= 0.11"
            )
        ]
    if name == "jax-triton":
        absent = "TRITON_INTERPRET" not in os.environ or not importlib.util.find_spec("triton")
        return [
            pytest.mark.skipif(absent, reason="needs triton, and a process with TRITON_INTERPRET=1")
        ]
    return []


def every(names=tuple(SUBJECTS)):
    """Parametrizes a test over implementations, as `subject`."""
    return pytest.mark.parametrize("subject", [pytest.param(n, marks=_skipped(n)) for n in names])


def every_variant(names=tuple(SUBJECTS)):
    """Parametrizes a test over implementations and their variants, as `subject` and `variant`."""
    cases = [
        pytest.param(n, v, marks=_skipped(n), id=f"{n}-{v}")
        for n in names
        for v in SUBJECTS[n].variants
    ]
    return pytest.mark.parametrize(("subject", "variant"), cases)


class Case(NamedTuple):
    """Inputs of the op as numpy arrays; cotangent: the gradient of the output.

    Padding of the floats is NaN.
    """

    floats: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    cotangent: np.ndarray


def make_case(subject: str, variant: str, rows: Rows, seed: int) -> Case:
    """Random values for packed rows.

    Tables are shorter than the longest distance and the largest bucket.
    """
    rng, about, (inputs, _) = np.random.default_rng(seed), SUBJECTS[subject], VARIANTS[variant]
    heads, (a, v) = (*rows.segments.shape, about.heads), about.widths
    dtype = jnp.dtype(about.dtype)
    padding = (rows.segments == 0)[..., None, None]
    vectors = lambda width: np.where(padding, np.nan, rng.normal(size=(*heads, width))).astype(
        dtype
    )
    floats: dict[str, np.ndarray] = {"q": vectors(a), "k": vectors(a), "v": vectors(v)}
    tables = {"position_table": about.block - 3, "time_table": 20}
    floats |= {
        name: rng.normal(size=size).astype(np.float32)
        for name, size in tables.items()
        if name in inputs
    }
    found = {name: x for name, x in rows._asdict().items() if name in inputs | {"segments"}}
    if "time_table" in inputs:
        key_times = np.cumsum(rng.integers(0, 1000, rows.segments.shape), 1)
        found["key_times"] = key_times.astype(np.int32)
        found["query_times"] = (key_times + rng.integers(-500, 1000, key_times.shape)).astype(
            np.int32
        )
    return Case(floats, found, vectors(v))


@functools.cache
def _program(subject: str, variant: str, longest: int):
    """(case) -> (output, gradients by name), compiled once for each shape of the inputs."""
    about = SUBJECTS[subject]
    options = {"max_length": longest, "scale": 0.4 if about.widths[0] < 64 else 0.2} | VARIANTS[
        variant
    ][1]

    def call(floats, rows, cotangent):
        if not about.gradients:
            return about.attend(floats | rows, **options), {}
        out, backward = jax.vjp(lambda floats: about.attend(floats | rows, **options), floats)
        return out, backward(cotangent)[0]

    # Unoptimised machine code is ready in half the time.
    return (
        jax.jit(call, compiler_options={"xla_backend_optimization_level": 0}) if about.jit else call
    )


def results(subject: str, variant: str, longest: int, case: Case):
    """Output and gradients of an implementation; longest: max_length."""
    return _program(subject, variant, longest)(*jax.tree.map(jnp.array, tuple(case)))


@functools.cache
def _specification(variant: str, longest: int, scale: float, gradients: bool):
    options = {"max_length": longest, "scale": scale} | VARIANTS[variant][1]

    def call(floats, rows, cotangent):
        attend = lambda floats: SUBJECTS["reference"].attend(floats | rows, **options)
        out, backward = jax.vjp(attend, floats)
        return out, backward(cotangent)[0] if gradients else {}

    return jax.jit(call)


def expected(subject: str, variant: str, longest: int, case: Case):
    """The truth of `results` in float64, with zeros for the NaN of the padding."""
    about = SUBJECTS[subject]
    call = _specification(variant, longest, 0.4 if about.widths[0] < 64 else 0.2, about.gradients)
    wide = lambda x: np.nan_to_num(np.asarray(x, np.float64))
    floats = {name: wide(x) for name, x in case.floats.items()}
    with jax.enable_x64(True):
        return jax.tree.map(np.array, call(floats, case.rows, wide(case.cotangent)))


def assert_equal_the_reference(
    subject: str, variant: str, longest: int, rows: Rows, seed: int
) -> None:
    """Assert that output and gradients are close to the specification, and 0 at padding."""
    case = make_case(subject, variant, rows, seed)
    ours = results(subject, variant, longest, case)
    truth = expected(subject, variant, longest, case)
    assert jax.tree.structure(ours) == jax.tree.structure(truth)
    rounding = 2.0**-9 if SUBJECTS[subject].dtype == "bfloat16" else SUBJECTS[subject].tolerance
    terms = max((np.abs(truth[1][name]).max() for name in "qk" if name in truth[1]), default=0)
    for (path, x), y in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(truth), strict=True):
        name, x = jax.tree_util.keystr(path), np.asarray(x, np.float64)
        largest = max(np.abs(y).max(), terms if "table" in name else 0, 1e-2)
        errors = np.abs(x - y) / largest
        worst = np.unravel_index(
            np.argmax(np.where(np.isnan(errors), np.inf, errors)), errors.shape
        )
        assert errors[worst] < SUBJECTS[subject].tolerance, (
            f"{name} at {worst}: {x[worst]}, not {y[worst]}"
        )
        assert errors.mean() < rounding, f"{name}: more than rounding"
        if x.ndim == 4:
            assert not x[rows.segments == 0].any(), f"{name} at padding"
