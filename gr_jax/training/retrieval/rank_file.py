"""The rank of every user's target as a Parquet file, and the comparison of two such files.

Columns: user and item (raw ids), rank (1 = best; null = no served list has the item), log_prob of
the item in nats, and history, the events of the user before it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from gr_jax.config import ConfigError
from gr_jax.data.dataset import Catalogue
from gr_jax.training.retrieval.evaluation import UserRanks
from gr_jax.training.retrieval.metrics import gains, hit_rate, ndcg

TEST_RANKS = "test_ranks.parquet"  # in a workdir, of its best checkpoint


class Difference(NamedTuple):
    """NDCG@10 of two models for the same users, the second subtracted from the first."""

    users: int
    ndcg: tuple[float, float]  # of each model
    hit_rate: tuple[float, float]  # HR@10 of each model
    difference: float  # mean over the users of the differences in NDCG@10
    error: float  # its standard error
    p: float  # of a paired t-test, two-sided

    def __str__(self) -> str:
        ours, theirs = self.ndcg
        return (
            f"ndcg@10 {ours:.4f} against {theirs:.4f}: {self.difference:+.4f} ±{self.error:.4f},"
            f" p = {self.p:.2g} (paired t-test, {self.users:,} users); hr@10"
            f" {self.hit_rate[0]:.4f} against {self.hit_rate[1]:.4f}"
        )


def write(path: Path, found: UserRanks, catalogue: Catalogue) -> None:
    """Write the ranks of a split, in the order of the users of the log, whole or not at all.

    Raises:
      ConfigError: the file cannot be written.
    """
    order = np.argsort(found.user)
    user, target, rank, log_prob, history = (column[order] for column in found[:5])
    is_ranked = np.isfinite(rank)
    table = pl.DataFrame(
        {
            "user": catalogue.raw_users(user),
            "item": catalogue.raw_items(target),
            "rank": pl.Series(np.where(is_ranked, rank, 0).astype(np.int64)),
            "log_prob": log_prob.astype(np.float32),
            "history": history.astype(np.int64),
        }
    ).with_columns(rank=pl.when(pl.Series(is_ranked)).then("rank"))
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        table.write_parquet(partial)
        os.replace(partial, path)
    except (OSError, pl.exceptions.PolarsError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error)
        raise ConfigError(f"{path}: cannot be written: {reason}") from None
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path, *, remedy: str) -> pl.DataFrame:
    """The table of a file.

    Raises:
      ConfigError: it is missing or damaged; ends in the remedy.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: missing; {remedy}")
    kinds = {"user": pl.String, "item": pl.String, "rank": pl.Int64}
    columns = [pl.col(name).cast(kind) for name, kind in kinds.items()]
    try:
        table = pl.read_parquet(path).select(columns)
    except (pl.exceptions.PolarsError, OSError):
        table = None
    if table is None or table["user"].is_duplicated().any():
        raise ConfigError(f"{path}: damaged, or no file of ranks; {remedy}")
    return table


def compare(ours: pl.DataFrame, theirs: pl.DataFrame) -> Difference:
    """The difference between two models on the users that both were asked about.

    Raises:
      ConfigError: fewer than two users are in both, or they were asked for other items.
    """
    both = ours.join(theirs, on="user", suffix="_theirs")
    if len(both) < 2:
        raise ConfigError("the two runs have fewer than two users in common, so nothing is paired")
    others = int((both["item"] != both["item_theirs"]).sum())
    if others:
        raise ConfigError(
            f"{others:,} of {len(both):,} users were asked for different items in the two runs:"
            " compare runs of the same log and the same evaluate.split"
        )
    ranks = [
        both[name].cast(pl.Float64).fill_null(np.inf).to_numpy() for name in ("rank", "rank_theirs")
    ]
    gain = [gains(rank, 10) for rank in ranks]
    difference = gain[0] - gain[1]
    return Difference(
        users=len(both),
        ndcg=(ndcg(ranks[0], 10), ndcg(ranks[1], 10)),
        hit_rate=(hit_rate(ranks[0], 10), hit_rate(ranks[1], 10)),
        difference=float(difference.mean()),
        error=float(difference.std(ddof=1) / np.sqrt(len(both))),
        p=float(stats.ttest_rel(gain[0], gain[1]).pvalue) if difference.any() else 1.0,
    )
