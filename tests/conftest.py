"""Eight virtual CPU devices for every test, and the optional folders of reference vectors and real data."""

import os
from pathlib import Path

# Read once, when JAX first looks for devices: so before any test module is imported. The tests compile many small
# programs, which takes half the time without optimisation.
for flag in ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"):
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
# Folders beside the checkout that not everyone has; the variables point elsewhere.
GOLDEN = Path(os.environ.get("GR_JAX_GOLDEN", ROOT.parent / "shared" / "golden"))
DATA = Path(os.environ.get("GR_JAX_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def golden():
    """`golden(name)`: the reference vectors of `<name>.npz`; skips where the folder is not there."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = GOLDEN / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no reference vectors {path} (set GR_JAX_GOLDEN to their folder)")
        with np.load(path) as file:
            return dict(file)

    return load


@pytest.fixture(scope="session")
def shared_data():
    """`shared_data(name)`: the path of real data, such as `ml-1m`; skips where it is not there."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"no dataset {path} (set GR_JAX_DATA to the folder that holds it)")
        return path

    return find
