"""Fields of the data: the raw log, how it is read and how histories become packed rows."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field

from gr_jax.config.checks import check, check_at_least, check_choice, check_types

LONGEST_ROW = 2**20  # tokens; the host keeps a list for each number of free ones
SOURCES = (
    "ml-100k",
    "ml-1m",
    "ml-20m",
    "amazon-2014",
    "amazon-2023",
    "kuairand",
    "csv",
    "parquet",
    "synthetic",
)


@typing.no_type_check
@dataclass(frozen=True)
class SyntheticConfig:
    """The generated log: `data/log/synthetic.py`, or `synthetic_actions.py` if it has actions."""

    num_users: int = 4000  # users in the log
    num_items: int = 1000  # items in the catalogue
    mean_length: float = 40.0  # mean events per user (log-normal, at least 5)
    seed: int = 0  # of the generated world, apart from the training seed
    # users act on some events, depending on how often and how recently they did before
    actions: bool = False

    def __post_init__(self):
        check_types(self, "data.synthetic.")
        check_at_least(1, self, "data.synthetic.", "num_users", "num_items")
        check_at_least(5, self, "data.synthetic.", "mean_length")
        check(0 <= self.seed < 2**32, "data.synthetic.seed", self.seed, "in [0, 2^32)")


@typing.no_type_check
@dataclass(frozen=True)
class DataConfig:
    """Location and format of the raw log, and layout of histories."""

    source: str = "csv"  # format of the raw log, one of SOURCES
    # raw folder or file; "" = data/<source>, filled by download where the source has a site
    path: str = ""
    prepared: str = ""  # folder of the prepared dataset; "" = data/prepared/<source>-<fingerprint>
    user_column: str = "user_id"  # csv and parquet only: name of the user column
    item_column: str = "item_id"  # csv and parquet only: name of the item column
    time_column: str = "timestamp"  # csv and parquet only: name of the time column
    rating_column: str = ""  # csv and parquet only: name of the rating column; "" = none
    # csv only: what stands between the fields, one character or tab; "" = the one of , tab ; | by
    # which the header line has the columns
    delimiter: str = ""
    # csv and parquet only: unit of the numbers in the time column, s, ms, us or ns; date-times and
    # their text have their own
    time_unit: str = "s"
    # none | k_core (repeated until stable) | one_pass (counted once, as in the paper)
    filter: str = "none"
    min_events: int = 5  # events a user and an item need under `filter`
    # error = stop at the first bad line | skip = leave bad lines out and report them
    on_bad_row: str = "error"
    # events with the user, item and time of another: drop | keep | error; always counted and told
    duplicates: str = "drop"
    # what can happen at an event: "watched=1", "click=is_click" (0/1 column), "liked=rating>=4"
    actions: tuple[str, ...] = ()
    # own file of user attributes, beside the log, with its user column; "" = that of the source
    user_file: str = ""
    user_features: tuple[str, ...] = ()  # user attributes that become tokens before the history
    # own file of items, beside the log, with its item column; a column `title` names them
    item_file: str = ""
    # columns of the item attributes, several values a cell with "|" between
    item_features: tuple[str, ...] = ()
    # slowly changing user series, "country=country.csv": columns user, time and country
    series: tuple[str, ...] = ()
    max_series: int = 16  # most recent entries of all slow series together in a sequence
    # N: most recent events of a user that the model sees; attention is divided by it
    max_length: int = 200
    row_length: int = 256  # L: tokens in a packed row, at least max_length
    # epochs cut long histories so that attention costs N^alpha; 2 = off
    stochastic_length_alpha: float = 2.0
    # events kept: greedy (most recent) | random | weighted (by recency)
    stochastic_length_selection: str = "weighted"
    # only for source="synthetic"
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self):
        check_types(self, "data.")

        # The log
        check_choice("data.source", self.source, SOURCES)
        check_choice("data.time_unit", self.time_unit, ("s", "ms", "us", "ns"))
        mark, rule = self.delimiter, "one character that is no letter, digit or quote, or tab"
        one = len(mark) == 1 and not mark.isalnum() and mark not in '"\r\n'
        check(one or mark in ("", "tab", "\\t"), "data.delimiter", mark, rule)
        check_choice("data.filter", self.filter, ("none", "k_core", "one_pass"))
        check_choice("data.on_bad_row", self.on_bad_row, ("error", "skip"))
        check_choice("data.duplicates", self.duplicates, ("drop", "keep", "error"))
        check_at_least(1, self, "data.", "min_events", "max_length")
        for name in ("actions", "user_features", "item_features", "series"):
            value = getattr(self, name)
            check(all(type(x) is str for x in value), f"data.{name}", value, "a tuple of strings")
        check_at_least(0, self, "data.", "max_series")

        # Histories and rows
        alpha, selection = self.stochastic_length_alpha, self.stochastic_length_selection
        check(1 < alpha <= 2, "data.stochastic_length_alpha", alpha, "in (1, 2]; 2 is off")
        selections = ("greedy", "random", "weighted")
        check_choice("data.stochastic_length_selection", selection, selections)
        rule = f"at least data.max_length={self.max_length}"
        check(self.row_length >= self.max_length, "data.row_length", self.row_length, rule)
        rule = f"at most {LONGEST_ROW}"
        check(self.row_length <= LONGEST_ROW, "data.row_length", self.row_length, rule)
