"""Amazon Reviews 2014: Books as in the paper, and the small Beauty.

Data: https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html, `ratings_Books.csv` (0.9 GB) or
`ratings_Beauty.csv` (80 MB), downloaded on the first run; or point `--config.data.path` at your
file. Books: users and items need 5 events, counted once as in the paper, which leaves 10 million
events of 695,000 users and about as many items. Beauty: counted until nothing changes (5-core),
which leaves 198,502 events, 22,363 users and 12,101 items.

    python -m gr_jax.train --config=configs/amazon.py                  # books: 4 blocks of 4 heads
    python -m gr_jax.train --config=configs/amazon.py:books-large      # 16 blocks of 8 heads
    python -m gr_jax.train --config=configs/amazon.py:books-sasrec     # the softmax baseline
    python -m gr_jax.train --config=configs/amazon.py:beauty           # as books, on the small data
    python -m gr_jax.train --config=configs/amazon.py:beauty-sasrec
    python -m gr_jax.train --config=configs/amazon.py:beauty-transformer    # 4 x wider feed-forward
    python -m gr_jax.plan --config=configs/amazon.py:trillion --devices=256 --device=h100

    add --config.loss.kind=group
        to share 512 negatives among 32 neighbouring positions: faster on a CPU
    add --config.loss.kind=group --config.optimizer.table=rowwise_adamw
        to update only the table entries that a batch names

Cost: Books is made for a GPU: 5,429 steps an epoch, estimated at 0.3 s each on 2 CPU cores (group
loss), half an hour an epoch; books-large about four times that. Beauty has 168 steps an epoch; on 2
CPU cores that other jobs kept busy, beauty took 30 to 49 epochs in 17 to 27 minutes and
beauty-sasrec 72 to 93 epochs in 22 to 60 minutes, ended by validation.

Expected test metric, full catalogue: Beauty HR@10 / NDCG@10 of .0916 / .0519 (beauty, mean of three
seeds), .0848 / .0491 (beauty-sasrec, mean of three seeds) and .0842 / .0482 (beauty-transformer,
one seed; `experiments/quality/public_retrieval.py`). Books: not measured here; the paper reports
.0404 / .0219 (books) and .0469 / .0257 (books-large) under its own protocol (Zhai et al. 2024,
table 4), its public code later .0416 / .0227 and .0478 / .0262. The paper has no Beauty.
"""

from dataclasses import replace

from gr_jax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    LossConfig,
    ModelConfig,
    SyntheticConfig,
    TrainConfig,
    unknown_variant,
)

BASE = ModelConfig(
    width=64, num_blocks=4, num_heads=4, qk_width=16, v_width=16, input_dropout=0.5, dropout=0.5
)
# Entries of 1024 numbers, 1.5e12 in all; with the padding entry 1024 devices divide them.
TRILLION_ITEMS = 1430512 * 1024 - 1
SASREC = replace(BASE, kind="sasrec", ffn_width=64)
MODELS = {
    "books": BASE,
    "books-large": replace(BASE, num_blocks=16, num_heads=8, qk_width=8, v_width=8),
    "books-sasrec": SASREC,
    "beauty": BASE,
    "beauty-sasrec": SASREC,
    "beauty-transformer": replace(SASREC, ffn_width=256),
}


def get_config(variant: str = "books") -> Config:
    if variant not in (*MODELS, "trillion"):
        raise unknown_variant(variant, [*MODELS, "trillion"])
    if variant == "trillion":
        return trillion()
    beauty = Config(
        data=DataConfig(
            source="amazon-2014",
            path="data/amazon-2014/ratings_Beauty.csv",
            filter="k_core",
            min_events=5,
            max_length=50,
            row_length=64,
        ),
        model=MODELS[variant],
        loss=LossConfig(kind="full", negatives=512, group=32),
        train=TrainConfig(epochs=201, batch_users=128, patience=10),
    )
    if variant.startswith("beauty"):
        return beauty
    return replace(
        beauty,
        data=replace(beauty.data, path="data/amazon-2014/ratings_Books.csv", filter="one_pass"),
        # a full softmax is 695,762 logits a token
        loss=replace(beauty.loss, kind="per_token"),
        # validation every epoch; the test is on all users
        evaluate=EvaluateConfig(valid_users=10_000),
    )


def trillion() -> Config:
    """1.5 trillion parameters: the sizes for a plan, without a log."""
    world = SyntheticConfig(num_users=1_000_000_000, num_items=TRILLION_ITEMS, mean_length=2000.0)
    return Config(
        data=DataConfig(
            source="synthetic",
            synthetic=world,
            max_length=8192,
            row_length=8192,
            stochastic_length_alpha=1.8,
        ),
        model=ModelConfig(
            width=1024,
            num_blocks=24,
            num_heads=8,
            qk_width=128,
            v_width=128,
            compute_dtype="bfloat16",
            remat=True,
        ),
        loss=LossConfig(kind="group", negatives=512, group=128),
        train=TrainConfig(batch_users=2048),
    )
