"""A small model and its sizes."""

from typing import Any

import numpy as np

from gr_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig
from gr_jax.planning.sizes import Sizes


def small(
    *,
    rows: int = 32,
    length: int = 64,
    items: int = 20_000,
    loss: str = "group",
    mesh: MeshConfig | None = None,
    **model: Any,
) -> tuple[Config, Sizes]:
    """One block of two heads on rows of `length` tokens, histories of four fifths of that."""
    longest = length * 4 // 5
    settings = {"width": 32, "num_blocks": 1, "num_heads": 2, "qk_width": 8, "v_width": 16} | model
    config = Config(
        data=DataConfig(max_length=longest, row_length=length),
        model=ModelConfig(**settings),
        loss=LossConfig(kind=loss, negatives=16, group=8),
        mesh=mesh or MeshConfig(data=1),
    )
    return config, Sizes(items, longest, rows, length, float(rows), np.full(rows, longest))
