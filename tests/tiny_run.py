"""A training of seconds, for tests: its config, how it is run and what it leaves."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from gr_jax import train
from gr_jax.data.log.preparation import prepare
from gr_jax.training.checkpoint import Checkpoints
from gr_jax.training.init_from import continued, first_state
from gr_jax.training.run import Run, open_run
from gr_jax.training.state import TrainState

CONFIG = """
from gr_jax.config import *

def get_config(variant=""):
    return Config(
        data=DataConfig(
            source="csv", path={path!r}, prepared={prepared!r}, max_length=16, row_length=32
        ),
        model=ModelConfig(width=16, num_blocks=1, qk_width=8, v_width=8),
        loss=LossConfig(kind="group", negatives=8, group=8),
        train=TrainConfig(epochs=3, batch_users=8, log_every=2, patience=0, checkpoint_every=5),
        mesh=MeshConfig(data=1),
    )
"""


def write_config(folder: Path) -> Path:
    """A config on a small CSV log: 64 users walk through 40 items in order, from a random start."""
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for user in range(64):
        start = rng.integers(40)
        times = 10**9 + np.cumsum(rng.integers(1, 10**5, 14))
        lines += [f"u{user},i{(start + step) % 40},{t}" for step, t in enumerate(times)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    config = folder / "tiny.py"
    config.write_text(
        CONFIG.format(path=str(folder / "log.csv"), prepared=str(folder / "prepared"))
    )
    return config


def run_train(config_file: Path, workdir: Path, *overrides: str) -> int:
    return train.main(
        [f"--config={config_file}", f"--workdir={workdir}", "--report=false", *overrides]
    )


def begun(
    earlier: Path, log: Path, workdir: Path, **groups: dict[str, object]
) -> tuple[Run, TrainState]:
    """A run on a newer log at step 0, with the config of `earlier` and these changes of groups."""
    workdir.mkdir(exist_ok=True)
    config = continued(earlier, workdir, {"path": str(log)})
    prepared = {"prepared": str(workdir / "prepared")}
    changes = groups | {
        "data": prepared | groups.get("data", {}),
        "train": {"init_from": str(earlier)},
    }
    for name, change in changes.items():
        group = dataclasses.replace(getattr(config, name), **change)
        config = dataclasses.replace(config, **{name: group})
    run = open_run(config, workdir, prepare(config.data))
    return run, first_state(run, run.planned_state())


def lines_of(workdir: Path, split: str) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by name."""
    from jax.tree_util import keystr, tree_leaves_with_path

    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        restored = checkpoints.newest_arrays()
    finally:
        checkpoints.close()
    return {keystr(path): np.asarray(leaf) for path, leaf in tree_leaves_with_path(restored)}


def assert_same_state(a: Path, b: Path) -> None:
    ours, theirs = final_state(a), final_state(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
