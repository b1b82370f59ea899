"""MovieLens-1M: 1,000,209 ratings of 3,706 films by 6,040 users.

Data: https://grouplens.org/datasets/movielens/1m/ (`ratings.dat`; 6 MB, downloaded on the first
run, or point `--config.data.path` at a folder that has it).

    python -m gr_jax.train --config=configs/ml_1m.py              # base: 2 blocks of 1 head
    python -m gr_jax.train --config=configs/ml_1m.py:large        # 8 blocks of 2 heads
    python -m gr_jax.train --config=configs/ml_1m.py:swiglu       # base with feed-forward layers
    python -m gr_jax.train --config=configs/ml_1m.py:sasrec       # the softmax baseline, same loss
    python -m gr_jax.train --config=configs/ml_1m.py:transformer  # its feed-forward layer 4 x wider
    python -m gr_jax.train --config=configs/ml_1m.py:ranking      # liked (4, 5), loved (5), rating
    python -m gr_jax.train --config=configs/ml_1m.py:ranking-dlrm # the same by DIN and DCN-v2

    add --config.loss.kind=per_token
        for the paper's own loss of retrieval (128 negatives per position)

The ranking variants also read `users.dat` and `movies.dat` beside the ratings: gender, age,
occupation and the first digit of the zip code of a user; genres and year of a film. They train on
the first 81 % of the events by time, the next 9 % pick the checkpoint, the last 10 % test.

Cost with the full softmax, 47 steps an epoch, two runs side by side, each on one of 2 CPU cores and
beside other jobs, until validation or the last epoch ended them: base 70 to 101 epochs in 36 to 67
minutes, sasrec 72 to 101 epochs in 44 to 67 minutes, large 82 epochs in 149 minutes. On both cores
of a machine that was also doing other work: ranking 15 to 16 minutes, ranking-dlrm 12 to 27.

Expected test metric, full catalogue: HR@10 / NDCG@10 of .3314 / .1975 (base, mean of three seeds),
.3671 / .2211 (large, one seed), .2981 / .1718 (sasrec, mean of three seeds) and .3065 / .1760
(transformer, mean of three seeds). swiglu, 20 epochs of one seed: better than base by then
(`experiments/quality/successors.py`). The paper reports .3097 / .1720 (base), .3294 / .1893 (large)
and .2853 / .1603 (sasrec), under a protocol that removes only the visible 200 items and looks at
the test split every epoch (Zhai et al. 2024, table 4). Ranking: NE .755 and AUC .815 of liked, NE
.753 and AUC .835 of loved (three seeds); ranking-dlrm NE .772 and AUC .806 of liked (three seeds;
`experiments/quality/ranking_quality.py`).
"""

from gr_jax.config import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RankingConfig,
    TrainConfig,
    unknown_variant,
)

MODELS = {
    "base": ModelConfig(num_blocks=2, num_heads=1, qk_width=50, v_width=50),
    "large": ModelConfig(num_blocks=8, num_heads=2, qk_width=25, v_width=25),
    "swiglu": ModelConfig(num_blocks=2, num_heads=1, qk_width=50, v_width=50, swiglu_width=100),
    "sasrec": ModelConfig(kind="sasrec", num_blocks=2, num_heads=1, ffn_width=50),
    "transformer": ModelConfig(kind="sasrec", num_blocks=2, num_heads=1, ffn_width=200),
}
RANKERS = {
    "ranking": ModelConfig(width=64, num_blocks=2, num_heads=1, qk_width=64, v_width=64),
    "ranking-dlrm": ModelConfig(kind="dlrm", width=64, hidden_widths=(256, 128), cross_layers=3),
}


def get_config(variant: str = "base") -> Config:
    if variant in RANKERS:
        return _ranking(variant)
    if variant not in MODELS:
        raise unknown_variant(variant, [*MODELS, *RANKERS])
    return Config(
        data=DataConfig(source="ml-1m", max_length=200, row_length=256),
        model=MODELS[variant],  # width 50, dropouts 0.2, temperature 0.05: the defaults
        loss=LossConfig(kind="full"),  # exact, and cheap for 3,706 items
        train=TrainConfig(epochs=101, batch_users=128, validate_every=2, patience=5),
    )


def _ranking(variant: str) -> Config:
    is_dlrm = variant == "ranking-dlrm"
    data = DataConfig(
        source="ml-1m",
        actions=(
            "watched=1",
            "rated2=rating>=2",
            "rated3=rating>=3",
            "liked=rating>=4",
            "loved=rating>=5",
        ),
        user_features=("gender", "age", "occupation", "zip_region"),
        item_features=("genres", "year"),
        # a label of the sequence model sees 64 to 127 events before it
        max_length=64 if is_dlrm else 128,
        row_length=272,  # 2 tokens an event and the 4 attributes of the user
    )
    return Config(
        data=data,
        model=RANKERS[variant],
        ranking=RankingConfig(tasks=("liked", "loved", "rating"), tokens="paired"),
        optimizer=OptimizerConfig(learning_rate=2e-3 if is_dlrm else 1e-3),
        # Batches of about the same number of labels: a sequence has seventy, an impression one.
        train=TrainConfig(epochs=5, batch_users=1024 if is_dlrm else 16, patience=1),
    )
