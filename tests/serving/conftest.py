"""Two small trained runs, one of each kind, made once a process."""

import json
from pathlib import Path

import numpy as np
import pytest

from gr_jax import train

RETRIEVAL = """
from gr_jax.config import *

def get_config(variant=""):
    return Config(
        data=DataConfig(
            source="csv", path={path!r}, prepared={prepared!r}, item_file="titles.csv",
            max_length=8, row_length=16,
        ),
        model=ModelConfig(width=16, num_blocks=1, qk_width=8, v_width=8),
        loss=LossConfig(kind="full"),
        train=TrainConfig(epochs=2, batch_users=16, patience=0),
        optimizer=OptimizerConfig(learning_rate=5e-3),
        mesh=MeshConfig(data=1),
    )
"""
RANKING = """
from gr_jax.config import *

def get_config(variant="interleave"):
    return Config(
        data=DataConfig(
            source="csv", path={path!r}, prepared={prepared!r}, rating_column="stars",
            max_length=12, row_length=48,
            actions=("seen=1", "liked=stars>=4"), user_file="users.csv", user_features=("country",),
            item_file="items.csv", item_features=("genres",),
            series=("device=device.csv",), max_series=3,
        ),
        model=ModelConfig(
            kind="dlrm" if variant == "dlrm" else "hstu", width=16, num_blocks=2, qk_width=8,
            v_width=8, head_width=16, hidden_widths=(16,), cross_layers=1,
        ),
        ranking=RankingConfig(
            tasks=("liked", "rating"), tokens="interleave" if variant == "dlrm" else variant,
            valid_from=0.7, test_from=0.85,
        ),
        train=TrainConfig(epochs=1, batch_users=24, patience=0),
        optimizer=OptimizerConfig(learning_rate=5e-3),
        mesh=MeshConfig(data=1),
    )
"""


def trained(folder: Path, config: str, variant: str = "") -> Path:
    """Trains `config` on folder/log.csv; the workdir."""
    file, workdir = folder / "tiny.py", folder / f"run{variant}"
    file.write_text(config.format(path=str(folder / "log.csv"), prepared=str(folder / "prepared")))
    spec = f"{file}:{variant}" if variant else str(file)
    assert train.main([f"--config={spec}", f"--workdir={workdir}", "--report=false"]) == 0
    return workdir


@pytest.fixture(scope="session")
def retrieval(tmp_path_factory) -> Path:
    """A retrieval run: 64 users walk through 40 items with titles from random starts."""
    folder = tmp_path_factory.mktemp("retrieval")
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for user in range(64):
        start, times = rng.integers(40), 10**9 + np.cumsum(rng.integers(1, 10**5, 14))
        lines += [f"u{user},i{(start + step) % 40},{t}" for step, t in enumerate(times)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    titles = "".join(f"i{item},Film i{item}\n" for item in range(40))
    (folder / "titles.csv").write_text(f"item_id,title\n{titles}")
    return trained(folder, RETRIEVAL)


@pytest.fixture(scope="session")
def ranking_folder(tmp_path_factory) -> Path:
    """A log with stars, users with a country, items with genres, devices that change."""
    folder = tmp_path_factory.mktemp("ranking")
    rng = np.random.default_rng(0)
    log, users, devices = (
        ["user_id,item_id,timestamp,stars"],
        ["user_id,country"],
        ["user_id,timestamp,device"],
    )
    for user in range(48):
        time = 10**9 + int(rng.integers(10**6))
        users.append(f"u{user},{'BE' if user % 3 else 'FR'}")
        devices += [f"u{user},{time - 5},phone", f"u{user},{time + 40_000},tv"]
        for _ in range(int(rng.integers(6, 30))):
            item = int(rng.integers(20))
            stars = rng.integers(4, 6) if item % 2 == user % 2 else rng.integers(1, 4)
            log.append(f"u{user},i{item},{time},{stars}")
            time += int(rng.integers(1, 10_000))
    items = ["item_id,genres"] + [
        f"i{item},{'even' if item % 2 == 0 else 'odd|strange'}" for item in range(20)
    ]
    for name, lines in (("log", log), ("users", users), ("items", items), ("device", devices)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def ranking(ranking_folder) -> Path:
    """A ranking run, with a token for each item and one for each action."""
    return trained(ranking_folder, RANKING, "interleave")


@pytest.fixture(scope="session")
def result_of():
    """`result_of(workdir)`: result.json."""
    return lambda workdir: json.loads((workdir / "result.json").read_text())
