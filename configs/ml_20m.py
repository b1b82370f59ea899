"""MovieLens-20M: 20,000,263 ratings of 26,744 films by 138,493 users.

Data: https://grouplens.org/datasets/movielens/20m/ (`ratings.csv`; a zip of 190 MB, downloaded on
the first run, or point `--config.data.path` at a folder that has it).

    python -m gr_jax.train --config=configs/ml_20m.py            # base: 4 blocks of 4 heads
    python -m gr_jax.train --config=configs/ml_20m.py:large      # 16 blocks of 8 heads
    python -m gr_jax.train --config=configs/ml_20m.py:sasrec     # the softmax baseline, same loss

    add --config.loss.kind=per_token
        for the paper's own loss (128 negatives per position)

Cost: estimated, not measured. Made for a GPU: 1,082 steps an epoch, some hours in all for base on
one data-centre GPU. On 2 CPU cores an epoch takes hours; `--config.train.steps=50` is a first try.

Expected test metric, full catalogue: not measured here. The paper reports HR@10 / NDCG@10 of .3252
/ .1878 (base), .3567 / .2106 (large) and .2906 / .1621 (sasrec), under a protocol that removes only
the visible 200 items and looks at the test split every epoch (Zhai et al. 2024, table 4).
"""

from gr_jax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    TrainConfig,
    unknown_variant,
)

MODELS = {
    "base": ModelConfig(width=256, num_blocks=4, num_heads=4, qk_width=64, v_width=64),
    "large": ModelConfig(
        width=256, num_blocks=16, num_heads=8, qk_width=32, v_width=32, remat=True
    ),
    "sasrec": ModelConfig(kind="sasrec", width=256, num_blocks=4, num_heads=4, ffn_width=256),
}


def get_config(variant: str = "base") -> Config:
    if variant not in MODELS:
        raise unknown_variant(variant, list(MODELS))
    return Config(
        data=DataConfig(source="ml-20m", max_length=200, row_length=256),
        model=MODELS[variant],  # dropouts 0.2, temperature 0.05 and the full softmax: the defaults
        train=TrainConfig(epochs=101, batch_users=128, patience=10),
        # validation every epoch; the test is on all users
        evaluate=EvaluateConfig(valid_users=20_000),
    )
