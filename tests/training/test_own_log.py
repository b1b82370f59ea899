from pathlib import Path

from gr_jax.config import Config, DataConfig, files
from gr_jax.training.own_log import config_for


def test_a_run_that_has_begun_keeps_its_config_and_is_held_to_the_log_that_is_named(tmp_path: Path):
    begun = Config(seed=5, data=DataConfig(path="old.csv", max_length=30))
    files.save(begun, tmp_path / "config.json")
    (tmp_path / "metrics.jsonl").touch()
    config = config_for(DataConfig(path="new.csv"), tmp_path)
    assert config.data.path == "new.csv"
    assert (config.seed, config.data.max_length) == (5, 30)
