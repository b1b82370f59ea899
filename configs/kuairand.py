"""KuaiRand-1K: 11.7 million impressions of 4.4 million short videos, shown to 1,000 Kuaishou users.

Data: https://kuairand.com (`log_standard_*.csv`, `user_features_1k.csv`,
`video_features_basic_1k.csv`; an archive of Zenodo, downloaded on the first run), or point
`--config.data.path` at a folder that has them; the files of KuaiRand-Pure and -27K have the same
columns. Users and videos need 5 events, repeated until stable: a video was shown under three times
on average.

    python -m gr_jax.train --config=configs/kuairand.py           # base: retrieval of clicks
    python -m gr_jax.train --config=configs/kuairand.py:ranking   # click, like, follow, long view

Both see every impression with what the user did: click, like, follow, comment, forward, hate, long
view (the platform's own rule) and profile visit. Ranking also knows the user's activity and ranges
of followers, followed, friends and days since registration, and of a video its tags, type and
upload type.

Cost: estimated, not measured. A thousand users of whom the most recent 512 events are seen: some 30
steps an epoch, seconds on a data-centre GPU and minutes on 2 CPU cores.

Expected test metric: not measured (retrieval: HR@K and NDCG@K; ranking: NE and AUC of each task).
"""

from dataclasses import replace

from gr_jax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RankingConfig,
    TrainConfig,
    unknown_variant,
)

ACTIONS = (
    "click=is_click",
    "like=is_like",
    "follow=is_follow",
    "comment=is_comment",
    "forward=is_forward",
    "hate=is_hate",
    "long_view=long_view",
    "profile=is_profile_enter",
)
USER_FEATURES = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
)
LOG = DataConfig(
    source="kuairand",
    filter="k_core",
    min_events=5,
    actions=ACTIONS,
    max_length=512,
    row_length=1024,
)
MODEL = ModelConfig(width=64, num_blocks=4, num_heads=4, qk_width=16, v_width=16, use_actions=True)


def get_config(variant: str = "base") -> Config:
    if variant == "base":
        return Config(
            data=LOG,
            model=MODEL,
            # the catalogue is too large for the full softmax
            loss=LossConfig(positive="click", kind="group", group=32),
            train=TrainConfig(epochs=101, batch_users=32, patience=10),
            evaluate=EvaluateConfig(batch_users=32),
        )
    if variant == "ranking":
        data = replace(
            LOG,
            user_features=USER_FEATURES,
            item_features=("tag", "video_type", "upload_type"),
            row_length=1152,  # 2 tokens an event and the user's attributes
        )
        return Config(
            data=data,
            model=MODEL,
            ranking=RankingConfig(tasks=("click", "like", "follow", "long_view")),
            optimizer=OptimizerConfig(learning_rate=1e-3),
            train=TrainConfig(epochs=20, batch_users=32, patience=3),
        )
    raise unknown_variant(variant, ("base", "ranking"))
