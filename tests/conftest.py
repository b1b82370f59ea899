"""Eight virtual CPU devices and a shared compilation cache for every test, and the optional data.

Random examples: `--hypothesis-seed=N` repeats a run; .ci/run draws new ones each day.
"""

import importlib.metadata
import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Read once, when JAX first looks for devices: so before any test module is imported. The tests
# compile many small programs, which takes half the time without optimisation, half of that by the
# older emitters of fusions that jaxlib 0.10 still has, and a quarter of the rest where another
# test, worker or process that a test starts has compiled the same program before.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
for flag in FLAGS:
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
COMPILED = ROOT / ".pytest_cache" / "xla"
if "PYTEST_XDIST_WORKER" not in os.environ and COMPILED.is_dir():
    if sum(file.stat().st_size for file in COMPILED.iterdir()) > 2**30:
        shutil.rmtree(COMPILED)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# Where CI is set hypothesis would draw the same examples for ever. A failing one is printed in a
# form that can be pasted above the test.
hypothesis.settings.register_profile("random", derandomize=False, print_blob=True, deadline=None)
hypothesis.settings.load_profile("random")

# Folders beside the checkout that not everyone has; the variables point elsewhere.
GOLDEN = Path(os.environ.get("GR_JAX_GOLDEN", ROOT.parent / "shared" / "golden"))
DATA = Path(os.environ.get("GR_JAX_DATA", ROOT.parent / "shared" / "data"))


# Tests of more than half a minute together, longest first: a worker takes a file at a time, and the
# other one should not wait for a long file at the end.
LONGEST = (
    "training/test_processes.py",
    "models/test_recommender.py",
    "test_train_ranking.py",
    "serving/test_model.py",
    "training/test_sharding.py",
    "test_train_resume.py",
    "training/tables/test_update.py",
    "test_train_faults.py",
    "models/test_kv_cache.py",
    "training/tables/test_admission.py",
    "serving/test_m_falcon.py",
    "test_report.py",
)


def pytest_collection_modifyitems(items):
    """Put the longest files first."""
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


@pytest.fixture(scope="session")
def golden():
    """`golden(name)`: the vectors of `<name>.npz`; without the folder it skips, in CI it fails."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = GOLDEN / f"{name}.npz"
        if not path.is_file():
            absent = pytest.fail if os.environ.get("CI") else pytest.skip
            absent(f"no reference vectors {path} (set GR_JAX_GOLDEN to their folder)")
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


@pytest.fixture(scope="session")
def config_file(tmp_path_factory) -> Path:
    """The config of a training of seconds, `tests.tiny_run`, and its log."""
    from tests.tiny_run import write_config

    return write_config(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="session")
def finished(config_file, tmp_path_factory) -> Path:
    """The workdir of that training, which was not interrupted; to be read or copied."""
    from tests.tiny_run import run_train

    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert run_train(config_file, workdir) == 0
    return workdir
