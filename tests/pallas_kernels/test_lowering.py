"""Every GPU kernel lowers for CUDA at every named shape, in both dtypes; no GPU is needed.

A lowering takes half a second, so each distinct kernel is lowered once, at the largest shape that
needs it.
"""

from dataclasses import replace

import jax
import numpy as np
import pytest

from pallas_kernels import dispatch, specs
from pallas_kernels.bench import measure
from tests.pallas_kernels.lowering import (
    CALLS,
    CONFIGURATIONS,
    configuration,
    example,
    input_shapes,
    lowered,
)

needs_mosaic = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="Mosaic GPU kernels need jax >= 0.11"
)
# Its widths are padded to multiples of 64, and it takes 16-bit numbers only.
OF_MOSAIC = [case for case in CONFIGURATIONS if case.width >= 50 and case.dtype == "bfloat16"]
CASES = [
    *(pytest.param("pallas_triton", case, id=f"triton-{case}") for case in CONFIGURATIONS),
    *(
        pytest.param("pallas_mosaic_gpu", case, marks=needs_mosaic, id=f"mosaic-{case}")
        for case in OF_MOSAIC
    ),
]


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize(("implementation", "case"), CASES)
def test_forward_and_backward_lower_for_a_gpu(implementation, case):
    spec = example(case)
    both = measure.functions(dispatch.load(implementation), spec)["forward_backward"]
    text = lowered(both, input_shapes(spec))
    # Forward, d_q, d_k with d_v, tables; wide heads have d_k and d_v in kernels of their own on
    # Mosaic.
    apart = implementation == "pallas_mosaic_gpu" and case.width == 256
    assert text.count(CALLS[implementation]) == 3 + case.bias + apart


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", specs.SPECS)
def test_every_named_shape_is_one_of_the_configurations_that_are_lowered(name, dtype):
    assert configuration(replace(specs.SPECS[name], dtype=dtype)) in CONFIGURATIONS


def test_lowered_shapes_are_those_of_the_inputs():
    spec = replace(specs.SPECS["tiny-bias"], dtype="bfloat16")
    arrays = measure.input_sets(spec, 1)[0]
    assert {name: (x.shape, np.dtype(x.dtype)) for name, x in arrays.items()} == {
        name: (x.shape, np.dtype(x.dtype)) for name, x in input_shapes(spec).items()
    }
