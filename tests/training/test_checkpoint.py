import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gr_jax.config import ConfigError
from gr_jax.training.checkpoint import Checkpoints, NotSaved, Progress


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
    checkpoints.save(3, a_state(3), progress)
    state, restored = checkpoints.restore(a_state(0))
    np.testing.assert_array_equal(state["w"], a_state(3)["w"])
    assert restored == progress


def test_progress_is_read_without_the_arrays_and_of_a_step_that_is_not_damaged(
    checkpoints, monkeypatch
):
    assert checkpoints.newest_progress() is None
    for step in (1, 2):
        checkpoints.save(step, a_state(step), Progress(best_step=step))
    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", None)
    assert checkpoints.newest_progress() == Progress(best_step=2)
    largest_file(Path(checkpoints.folder) / "2" / "state").write_bytes(b"")
    assert checkpoints.newest_progress() == Progress(best_step=1)


def test_the_newest_two_and_the_best_are_kept(checkpoints):
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2), (6, 2)):
        checkpoints.save(step, a_state(step), Progress(best_step=best))
    assert sorted(int(p.name) for p in Path(checkpoints.folder).iterdir() if p.name.isdigit()) == [
        2,
        5,
        6,
    ]
    assert values(checkpoints.restore(a_state(0), step=2)) == 2


def test_the_best_survives_later_sessions(tmp_path):
    for first in (1, 4, 7):
        opened = Checkpoints(tmp_path / "checkpoints", writes=True)
        for step in range(first, first + 3):
            opened.save(step, a_state(step), Progress(best_step=1))
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


def test_a_flipped_bit_anywhere_falls_back_to_the_step_before(tmp_path):
    rng = np.random.default_rng(0)
    noise = {
        step: {"w": jnp.asarray(rng.standard_normal((64, 16)), jnp.float32)} for step in (1, 2)
    }
    saving = Checkpoints(tmp_path / "checkpoints", writes=True)
    for step, state in noise.items():
        saving.save(step, state, Progress(best_step=step))
    saving.close()
    files = [p for p in (tmp_path / "checkpoints" / "2").rglob("*") if p.is_file()]
    assert len(files) > 8
    for file in files:
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        reading = Checkpoints(tmp_path / "checkpoints")
        restored = reading.restore(noise[1])
        reading.close()
        assert restored is not None
        np.testing.assert_array_equal(restored[0]["w"], noise[1]["w"], err_msg=str(file))
        file.write_bytes(whole)


def test_training_moves_a_damaged_step_aside_and_takes_it_again(tmp_path, capsys):
    saving = Checkpoints(tmp_path, writes=True)
    for step in (1, 2):
        saving.save(step, a_state(step), Progress())
    largest_file(tmp_path / "2").write_bytes(b"")
    assert values(saving.restore(a_state(0))) == 1 and saving.newest_step() == 1
    assert (tmp_path / "damaged-2").is_dir() and not (tmp_path / "2").exists()
    saving.save(2, a_state(5), Progress())
    assert values(saving.restore(a_state(0))) == 5
    saving.close()


def test_what_a_killed_save_left_is_removed_by_training_alone(tmp_path):
    left = tmp_path / "7.orbax-checkpoint-tmp-1"
    left.mkdir()
    Checkpoints(tmp_path).close()
    assert left.exists()
    Checkpoints(tmp_path, writes=True).close()
    assert not left.exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB; skips where none may be mounted."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mounted)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True, timeout=30)


def test_a_full_disk_keeps_the_last_good_step_and_later_saves_succeed(small_disk, caplog):
    rng = np.random.default_rng(0)
    state = {
        "w": jnp.asarray(rng.standard_normal((400, 256)), jnp.float32)
    }  # 0.4 MB that do not compress
    saving = Checkpoints(small_disk / "checkpoints", writes=True)
    saving.save(1, state, Progress())
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(b"x" * (free - 150_000))
    with pytest.raises(NotSaved):
        saving.save(2, state, Progress())
    assert not caplog.records, "what is raised is logged too"
    assert saving.newest_step() == 1 and not list((small_disk / "checkpoints").glob("2*"))
    restored = saving.restore(state)
    assert restored is not None
    np.testing.assert_array_equal(restored[0]["w"], state["w"])
    (small_disk / "filler").unlink()
    saving.save(3, state, Progress())
    assert saving.newest_step() == 3
    saving.close()


def test_only_damaged_steps_are_an_error_that_names_the_remedy(checkpoints):
    checkpoints.save(1, a_state(1), Progress())
    victim = largest_file(Path(checkpoints.folder) / "1" / "state")
    victim.write_bytes(b"")
    with pytest.raises(ConfigError, match="choose another --workdir"):
        checkpoints.restore(a_state(0))


def test_a_checkpoint_moves_to_another_mesh(checkpoints):
    def placed(shape, spec):
        mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    saved = jax.device_put(jnp.arange(64.0).reshape(16, 4), placed((8, 1), ("data",)))
    checkpoints.save(1, {"w": saved}, Progress())
    target = {
        "w": jax.ShapeDtypeStruct(
            (16, 4), jnp.float32, sharding=placed((4, 2), (("data", "model"), None))
        )
    }
    restored, _ = checkpoints.restore(target)
    np.testing.assert_array_equal(restored["w"], saved)
    assert restored["w"].sharding == target["w"].sharding


def test_progress_keeps_the_best_and_counts_stale_validations():
    progress = Progress()
    for step, value in ((1, 0.2), (2, 0.3), (3, 0.1), (4, 0.2)):
        progress = progress.after_validation(step, value)
    assert (progress.best_step, progress.best_value, progress.stale) == (2, 0.3, 2)
    assert progress.after_validation(5, 0.4).stale == 0


def test_a_field_of_an_older_progress_that_is_gone_is_left_out(checkpoints):
    checkpoints.save(3, a_state(3), Progress(best_step=3, losses=(0.1, 0.2)))
    (file,) = (Path(checkpoints.folder) / "3" / "progress").glob("metadata")
    file.write_text(file.read_text().replace("stale", "batch_multiple"))
    for sums in (Path(checkpoints.folder) / "3").glob("checksums.*"):
        sums.unlink()
    assert checkpoints.newest_progress() == Progress(best_step=3, losses=(0.1, 0.2))


@pytest.mark.parametrize("entries", [12, 24])
def test_a_table_is_cut_or_filled_up_to_the_entries_of_another_mesh(checkpoints, entries):
    table = jnp.arange(64.0).reshape(16, 4).at[10:].set(0)
    checkpoints.save(1, {"item_table": table}, Progress())
    restored, _ = checkpoints.restore({"item_table": jnp.zeros((entries, 4))})
    np.testing.assert_array_equal(restored["item_table"][:10], table[:10])
    assert restored["item_table"].shape == (entries, 4) and not restored["item_table"][10:].any()
