"""A raw log as the tests read it."""

import tempfile
from pathlib import Path

from gr_jax.config import DataConfig
from gr_jax.data.log import formats, raw_log


def read_log(config: DataConfig) -> raw_log.Log:
    """The log at `config.path`, without a dataset of it."""
    raw = formats.find(config)
    assert raw is not None
    with tempfile.TemporaryDirectory() as scratch:
        return raw_log.read(config, raw, Path(scratch))
