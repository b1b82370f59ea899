"""Configs: trees of frozen dataclasses, made by `get_config(variant) -> Config` of a Python file.

Command line: `--config=configs/ml_1m.py:large --config.model.width=64`. A mistake in either is a
`ConfigError` of one line.
"""

from gr_jax.config.checks import ConfigError
from gr_jax.config.config import Config
from gr_jax.config.data import SOURCES, DataConfig, SyntheticConfig
from gr_jax.config.files import UnknownVariant, unknown_variant
from gr_jax.config.mesh import FSDP, TENSOR, MeshConfig, ShardingRules
from gr_jax.config.model import ATTENTION, ModelConfig, VocabularyConfig
from gr_jax.config.objective import EvaluateConfig, LossConfig, RankingConfig
from gr_jax.config.train import OptimizerConfig, TrainConfig

__all__ = [
    "ATTENTION",
    "FSDP",
    "SOURCES",
    "TENSOR",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluateConfig",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RankingConfig",
    "ShardingRules",
    "SyntheticConfig",
    "TrainConfig",
    "UnknownVariant",
    "VocabularyConfig",
    "unknown_variant",
]
