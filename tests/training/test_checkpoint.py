from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.config import ConfigError
from gr_jax.training.checkpoint import Checkpoints, Progress


def a_state(value: float) -> dict:
    return {"w": jnp.full((64, 8), value), "n": jnp.asarray(int(value))}


def values(restored) -> float:
    assert restored is not None
    return float(restored[0]["w"][0, 0])


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints")
    yield opened
    opened.close()


def test_an_empty_folder_has_nothing_to_restore(checkpoints):
    assert checkpoints.restore(a_state(0)) is None


def test_state_and_progress_come_back(checkpoints):
    progress = Progress(best_step=3, best_value=0.25, stale=2, wall_seconds=7.5)
    checkpoints.save(3, a_state(3), progress, 0.25)
    state, restored = checkpoints.restore(a_state(0))
    np.testing.assert_array_equal(state["w"], a_state(3)["w"])
    assert restored == progress


def test_the_newest_two_and_the_best_are_kept(checkpoints):
    for step, metric in ((1, 0.1), (2, 0.9), (3, 0.3), (4, None), (5, 0.4), (6, None)):
        checkpoints.save(step, a_state(step), Progress(), metric)
    assert sorted(int(p.name) for p in Path(checkpoints.folder).iterdir() if p.name.isdigit()) == [2, 5, 6]
    assert values(checkpoints.restore(a_state(0), step=2)) == 2


def test_the_best_survives_later_sessions(tmp_path):
    for first in (1, 4, 7):
        opened = Checkpoints(tmp_path / "checkpoints")
        for step in range(first, first + 3):
            metric = 0.9 if step == 1 else 0.1
            opened.save(step, a_state(step), Progress(), metric if step != 5 else None)
        opened.close()
    reopened = Checkpoints(tmp_path / "checkpoints")
    assert values(reopened.restore(a_state(0), step=1)) == 1
    reopened.close()


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_a_damaged_newest_step_falls_back_to_the_one_before_it_loudly(checkpoints, capsys):
    for step in (1, 2):
        checkpoints.save(step, a_state(step), Progress())
    victim = largest_file(Path(checkpoints.folder) / "2" / "state")
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    assert values(checkpoints.restore(a_state(0))) == 1
    assert "warning: checkpoint 2 cannot be read" in capsys.readouterr().err


def test_only_damaged_steps_are_an_error_that_names_the_remedy(checkpoints):
    checkpoints.save(1, a_state(1), Progress())
    victim = largest_file(Path(checkpoints.folder) / "1" / "state")
    victim.write_bytes(b"")
    with pytest.raises(ConfigError, match="choose another --workdir"):
        checkpoints.restore(a_state(0))


def test_saving_a_step_again_adds_its_validation(checkpoints):
    checkpoints.save(1, a_state(1), Progress())
    checkpoints.save(1, a_state(1), Progress(best_step=1, best_value=0.5), 0.5)
    restored = checkpoints.restore(a_state(0))
    assert restored is not None and restored[1].best_value == 0.5


def test_a_checkpoint_moves_to_another_mesh(checkpoints):
    def placed(shape, spec):
        mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    saved = jax.device_put(jnp.arange(64.0).reshape(16, 4), placed((8, 1), ("data",)))
    checkpoints.save(1, {"w": saved}, Progress())
    target = {"w": jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=placed((4, 2), (("data", "model"), None)))}
    restored, _ = checkpoints.restore(target)
    np.testing.assert_array_equal(restored["w"], saved)
    assert restored["w"].sharding == target["w"].sharding


def test_progress_keeps_the_best_and_counts_stale_validations():
    progress = Progress()
    for step, value in ((1, 0.2), (2, 0.3), (3, 0.1), (4, 0.2)):
        progress = progress.after_validation(step, value)
    assert (progress.best_step, progress.best_value, progress.stale) == (2, 0.3, 2)
    assert progress.after_validation(5, 0.4).stale == 0
