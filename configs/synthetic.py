"""A generated log of 4,000 users, 1,000 items and 160,000 events: nothing to download.

    python -m gr_jax.train --config=configs/synthetic.py               # base: retrieval
    python -m gr_jax.train --config=configs/synthetic.py:ranking       # a click on the next event?
    python -m gr_jax.train --config=configs/synthetic.py:ranking-dlrm  # the same by DIN and DCN-v2

    add --config.model.bias=position
        to take the time away from the model

Cost: one minute on 2 CPU cores that other jobs used too; ranking one minute, ranking-dlrm 5
minutes.

Expected test HR@10: .83. The next item depends on order and on elapsed time
(`gr_jax/data/log/synthetic.py`): the best ranking possible has .88, the best without the time of
the request .49, a model with `bias=position` reaches .41, popularity .04
(`experiments/quality/synthetic_structure.py`).

Ranking is of another log (`gr_jax/data/log/synthetic_actions.py`): 6,000 users, 100 items in 20
categories, clicks by how often and how recently a category was met and clicked before. Expected
test NE: .474, and an AUC of .933; ranking-dlrm .480 and .932. The true probabilities have .43;
tables of click rates .44 by counts and recency, .57 by shares of the history and recency, .86 by
recency alone (`experiments/quality/synthetic_ranking_structure.py`).
"""

from gr_jax.config import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RankingConfig,
    SyntheticConfig,
    TrainConfig,
    unknown_variant,
)

RANKERS = {
    "ranking": ModelConfig(
        width=32, qk_width=32, v_width=32, head_width=32, input_dropout=0.0, dropout=0.1
    ),
    "ranking-dlrm": ModelConfig(
        kind="dlrm", width=32, hidden_widths=(64, 32), cross_layers=2, dropout=0.1
    ),
}


def get_config(variant: str = "base") -> Config:
    if variant in RANKERS:
        return _ranking(RANKERS[variant])
    if variant != "base":
        raise unknown_variant(variant, ["base", *RANKERS])
    return Config(
        data=DataConfig(source="synthetic", max_length=64, row_length=128),
        model=ModelConfig(width=48, qk_width=48, v_width=48, input_dropout=0.1, dropout=0.1),
        loss=LossConfig(kind="full"),
        # high, for a short run: 2e-3 takes twice the epochs
        optimizer=OptimizerConfig(learning_rate=4e-3),
        train=TrainConfig(epochs=12, batch_users=64),
    )


def _ranking(model: ModelConfig) -> Config:
    data = DataConfig(
        source="synthetic",
        synthetic=SyntheticConfig(num_users=6000, num_items=100, actions=True),
        actions=("click=click",),
        max_length=128,  # whole histories: the longest has 120 events
        row_length=256,  # 2 tokens an event
    )
    return Config(
        data=data,
        model=model,
        ranking=RankingConfig(tasks=("click",)),
        optimizer=OptimizerConfig(learning_rate=3e-3),  # high, for a short run
        train=TrainConfig(epochs=8, batch_users=16, patience=3),
    )
