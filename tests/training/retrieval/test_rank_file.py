from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from gr_jax.config import ConfigError
from gr_jax.training.retrieval import rank_file
from gr_jax.training.retrieval.metrics import gains


def table(ranks: list[int | None], users: str = "abcdef", item: str = "x") -> pl.DataFrame:
    names = list(users)[: len(ranks)]
    return pl.DataFrame({"user": names, "item": [item] * len(names), "rank": ranks})


def test_the_difference_of_two_runs_is_a_paired_test_over_their_users():
    ours, theirs = [1, 2, 30, 4, None], [3, 2, 40, 11, 5]
    found = rank_file.compare(table(ours), table(theirs).reverse())
    gain = [gains(np.array([r or np.inf for r in ranks]), 10) for ranks in (ours, theirs)]
    assert found.users == 5 and found.ndcg == pytest.approx((gain[0].mean(), gain[1].mean()))
    assert found.difference == pytest.approx(np.mean(gain[0] - gain[1]))
    assert found.error == pytest.approx(stats.sem(gain[0] - gain[1]))
    assert found.p == pytest.approx(stats.ttest_rel(*gain).pvalue)
    assert "paired t-test, 5 users" in str(found)


def test_a_run_is_not_better_than_itself():
    found = rank_file.compare(table([1, 2, 30]), table([1, 2, 30]))
    assert (found.difference, found.error, found.p) == (0, 0, 1)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (table([1, 2], users="xy"), "fewer than two users in common"),
        (table([1, 2, 3], item="y"), "3 of 3 users were asked for different items"),
    ],
)
def test_runs_that_cannot_be_paired_are_told(theirs, said):
    with pytest.raises(ConfigError, match=said):
        rank_file.compare(table([1, 2, 3]), theirs)


def test_a_file_that_is_missing_or_no_file_of_ranks_is_told_with_the_remedy(tmp_path: Path):
    path = tmp_path / "ranks.parquet"
    with pytest.raises(ConfigError, match="missing; make it"):
        rank_file.read(path, remedy="make it")
    path.write_text("no Parquet")
    said = "damaged, or no file of ranks; make it"
    with pytest.raises(ConfigError, match=said):
        rank_file.read(path, remedy="make it")
    ranks = table([1, 2])
    for other in (
        ranks.drop("rank"),
        ranks.with_columns(rank=pl.lit("first")),
        ranks.with_columns(user=pl.lit("a")),
    ):
        other.write_parquet(path)
        with pytest.raises(ConfigError, match=said):
            rank_file.read(path, remedy="make it")
    ranks.write_parquet(path)
    assert rank_file.read(path, remedy="").equals(ranks)
