"""A generated log of 4,000 users, 1,000 items and 160,000 events: the whole pipeline, nothing to download.

    python -m gr_jax.train --config=configs/synthetic.py
    add --config.model.bias=position to take the time away from the model

Cost: 92 s of CPU time; 165 s from start to end on 2 cores that other jobs kept busy (load 8).

Expected test HR@10: .83. What a user does next depends on order and on elapsed time
(`gr_jax/data/synthetic.py`): the best ranking possible has .88, the best without the time of the request .49,
a model with `bias=position` reaches .41, popularity .04 (`experiments/synthetic_structure.py`).
"""

from gr_jax.config import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    unknown_variant,
)


def get_config(variant: str = "base") -> Config:
    if variant != "base":
        raise unknown_variant(variant, ["base"])
    return Config(
        data=DataConfig(source="synthetic", max_length=64, row_length=128),
        model=ModelConfig(width=48, qk_width=48, v_width=48, input_dropout=0.1, dropout=0.1),
        loss=LossConfig(kind="full"),
        optimizer=OptimizerConfig(learning_rate=4e-3),  # high, for a short run: 2e-3 takes twice the epochs
        train=TrainConfig(epochs=12, batch_users=64),
    )
