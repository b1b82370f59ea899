import numpy as np

from gr_jax.config import Config, DataConfig, LossConfig, ModelConfig, RankingConfig
from gr_jax.models.flops import train_flops


def test_flops_of_a_sequence_equal_a_hand_count():
    config = Config(
        model=ModelConfig(
            width=4, num_blocks=1, num_heads=2, qk_width=3, v_width=5, swiglu_width=7
        ),
        loss=LossConfig(kind="full"),
    )
    tokens, pairs = 3, 6  # a token sees itself and what is before it
    projections = 2 * 4 * (10 + 10 + 6 + 6) + 2 * 10 * 4 + 3 * 2 * 4 * 7
    attention = 2 * (6 + 10)
    scores = 2 * 4 * 100
    expected = 3 * (tokens * projections + pairs * attention + tokens * scores)
    assert train_flops(config, np.array([3]), num_items=100) == expected


RANKING = dict(
    data=DataConfig(actions=("watched=1", "liked=rating>=4")),
    ranking=RankingConfig(tasks=("liked",)),
)


def test_flops_of_ranking_count_the_head_and_candidates_that_see_the_history_and_themselves():
    config = Config(
        model=ModelConfig(width=4, num_blocks=1, num_heads=2, qk_width=3, v_width=5, head_width=7),
        **RANKING,
    )
    tokens, pairs = 3 + 2 + 1, 6 + 2 * 4 + 1
    projections = 2 * 4 * (10 + 10 + 6 + 6) + 2 * 10 * 4
    head = 2 * 4 * 7 + 2 * 7
    expected = 3 * (tokens * (projections + head) + pairs * 2 * (6 + 10))
    got = train_flops(config, np.array([3, 1]), num_items=100, candidates=np.array([2, 0]))
    assert got == expected


def test_flops_of_impressions_equal_a_hand_count():
    config = Config(
        model=ModelConfig(kind="dlrm", width=4, cross_layers=2, hidden_widths=(6, 5)), **RANKING
    )
    per_event = 2 * (4 * 36 + 4 * 36 + 36) + 2 * 4
    w = 4 * 4 + 1 + 2
    per_impression = 2 * (4 * 36 + 2 * w * w + w * 6 + 6 * 5 + w + 5)
    expected = 3 * (10 * per_event + 2 * per_impression)
    assert train_flops(config, np.array([3, 7]), num_items=100) == expected
