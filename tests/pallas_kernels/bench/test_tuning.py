"""The candidates that the tuner tries."""

import pytest

from pallas_kernels import specs
from pallas_kernels.bench import tuning


@pytest.mark.parametrize("name", ["ml_1m-large", "4x128-l4096", "4x256-l4096-bias"])
@pytest.mark.parametrize("implementation", ["pallas_triton", "pallas_mosaic_gpu"])
def test_the_tuner_tries_several_but_not_many_block_sizes(implementation, name):
    found = tuning.candidates(implementation, specs.SPECS[name])
    assert 2 <= len(found) <= 24
    assert len(set(found)) == len(found)
