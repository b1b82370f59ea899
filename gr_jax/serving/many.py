"""A trained model asked for many users or items at a time: tables in, tables out."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import narwhals as nw
import numpy as np
import polars as pl
from jaxtyping import Int, Int64

from gr_jax.data.batches.splits import Split
from gr_jax.data.dataset import Dataset
from gr_jax.data.log.frames import Table, as_given
from gr_jax.errors import shown, tells_types
from gr_jax.serving import neighbours, saved, tables
from gr_jax.serving.all_users import LogUsers, Wanted, exact
from gr_jax.serving.history import AtTime, HistoryReader, RawId, RequestError, in_list, raw_id
from gr_jax.serving.index import ExactIndex
from gr_jax.serving.popular import PopularItems
from gr_jax.serving.query import Answerer
from gr_jax.serving.retriever import Retriever
from gr_jax.serving.trained import Trained


class ModelOfMany:
    """The parts of a trained model, and what it answers for many users or items at a time.

    Attributes:
      dataset: items, users and their log. reader: of raw histories.
      answerer: the `Retriever` or `Ranker` that computes the answers.
      like: a table of the kind that tables have, as of `frames.write_events`; None = polars.
    """

    like: nw.DataFrame | None = None

    def __init__(
        self,
        dataset: Dataset,
        reader: HistoryReader,
        answerer: Answerer,
        *,
        left_out: int | None,
        trained: Trained | None = None,
        version: str = "",
    ):
        """A model that answers.

        Args:
          left_out: as of `left_out_events`, unless a request says otherwise.
          trained: the run and its best checkpoint; None = of an export.
          version: a short hash of what the answers depend on, told with them when served.
        """
        self.dataset, self.reader, self.answerer = dataset, reader, answerer
        self.left_out, self._trained, self.version = left_out, trained, version
        self.popular = PopularItems(dataset)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Labels that ranking predicts, in order; () in retrieval."""
        return self.answerer.tasks

    @property
    def popularity(self) -> Int64[np.ndarray, " X1"]:
        """Events of each item in the log; of the padding 0."""
        return self.popular.counts

    @functools.cached_property
    def log_users(self) -> LogUsers:
        """The users whose histories `history` reads, many at a time."""
        return LogUsers(self.reader, self.answerer, self.popular, self._trained)

    @property
    def columns(self) -> tuple[str, str]:
        """Names of the columns of users and items in the log."""
        data = self._run().config.data
        return data.user_column, data.item_column

    @functools.cached_property
    def id_types(self) -> tables.IdTypes:
        """Types of the raw ids of users and items in tables."""
        return tables.id_types(self.dataset, self._trained, self.reader.newer)

    @tells_types
    def wanted(
        self,
        k: int = 10,
        at_time: AtTime = None,
        *,
        exclude_seen: bool | None = None,
        allow: Iterable[RawId] | None = None,
        deny: Iterable[RawId] = (),
        task: str = "",
    ) -> Wanted:
        """A checked request for lists of many users; arguments and errors as of `recommend`."""
        number, last = self._checked(k, exclude_seen, task)
        allowed = np.full(self.dataset.num_items + 1, allow is None)
        if allow is not None:
            allowed[self.reader.items(allow, "allow")] = True
        allowed[self.reader.items(deny, "deny", may_be_unknown=True)] = False
        allowed[0] = False
        moment = None if at_time is None else self.reader.history([], at_time=at_time).at_time
        return Wanted(min(int(k), self.dataset.num_items), allowed, last, moment, number)

    @tells_types
    def recommend_users(
        self,
        users: Iterable[RawId] | None = None,
        k: int = 10,
        at_time: AtTime = None,
        *,
        exclude_seen: bool | None = None,
        allow: Iterable[RawId] | None = None,
        deny: Iterable[RawId] = (),
        task: str = "",
    ) -> Table:
        """The k best items of users of the log: a table `user, item, rank, score`, best first.

        The table is of the kind that `fit` got, and of polars after `load`. A user has fewer rows
        if the catalogue has no more that may come.

            model.recommend_users(["42", "7"], k=5, deny=["2355"])

        Args:
          users: raw ids, of which each comes once; None = all users of the log.
          k, at_time, exclude_seen, allow, deny, task: as of `recommend`, for each of the users.

        Raises:
          RequestError: a user that the log does not have (it is named), or as `recommend`.
        """
        names, index = self._users(users)
        options = {"exclude_seen": exclude_seen, "allow": allow, "deny": deny, "task": task}
        found = self.log_users.best(index, self.wanted(k, at_time, **options))
        return as_given(tables.ranked(names, self.raw_items, *found), self.like)

    @tells_types
    def similar_items(self, items: Iterable[RawId], k: int = 10) -> Table:
        """Items near others, by cosine: a table `item, similar_item, rank, score`, best first.

            model.similar_items(["1193"], k=5)

        Raises:
          RequestError: an item that the catalogue does not have (it is named), or the model ranks.
        """
        index = self._index()
        self._checked(k, None, "")
        ids = self.reader.items(items, "items")
        found = neighbours.similar_items(index, ids, min(int(k), max(1, index.num_items - 1)))
        named = self.raw_items.gather(ids - 1).alias("item")
        table = tables.ranked(named, self.raw_items, *found, item="similar_item")
        return as_given(table, self.like)

    def item_vectors(self) -> Table:
        """The vector of each item: a table `item, vector`.

        Its product with a vector of `user_vectors` is the score, by which an index of your own can
        search.

        Raises:
          RequestError: the model ranks, and has no vectors to compare.
        """
        vectors = neighbours.item_vectors(self._index())
        return as_given(tables.with_vectors(self.raw_items, vectors), self.like)

    @tells_types
    def user_vectors(self, users: Iterable[RawId] | None = None, at_time: AtTime = None) -> Table:
        """The vector of users of the log: a table `user, vector`.

        Users are left out of whose history the model knows no item; arguments and errors as of
        `recommend_users` and `item_vectors`.
        """
        self._index()
        names, index = self._users(users)
        known = np.flatnonzero(np.diff(self.log_users.events.offsets)[index])
        asked = self.log_users.asked(index[known], self.wanted(1, at_time).at_time)
        vectors = self.log_users.vectors(index[known], asked)
        return as_given(tables.with_vectors(names.gather(known), vectors), self.like)

    @tells_types
    def evaluate(self, split: Split = "test") -> dict[str, float]:
        """Metrics on the held-out events, as of `python -m gr_jax.evaluate`.

            model.evaluate()["ndcg@10"]

        Args:
          split: test, or valid.

        Raises:
          RequestError: another split, or the model is an export.
        """
        if split not in ("test", "valid"):
            raise RequestError(f"split={shown(split)}: must be test or valid")
        return self._run().evaluate(split)

    def save(self, folder: str | Path) -> None:
        """Copy the run of the model, which `gr_jax.load` and all commands then find there.

            model.save("runs/mine")

        Raises:
          RequestError: the folder is there already and not empty, or the model is an export.
        """
        saved.save(self._run().workdir, Path(folder).expanduser())

    def _run(self) -> Trained:
        if self._trained is None:
            raise RequestError("an exported model has no run: gr_jax.load opens the one that has")
        return self._trained

    def _index(self) -> ExactIndex:
        if not isinstance(self.answerer, Retriever):
            raise RequestError(
                "a ranking model has no vectors to compare: it predicts what a user does with an"
                " item (model.score)"
            )
        return exact(self.answerer)

    def _users(self, users: object) -> tuple[pl.Series, Int[np.ndarray, " B"]]:
        """The ids of users in the type that tables have, and their index in the log."""
        log = self.log_users
        if users is None:
            index = np.arange(len(log))
        else:
            given = in_list(users, "users", "ids")
            index = log.index_of([raw_id(one, "users: an id") for one in given])
        names = log.catalogue.users["raw"].gather(index).alias("user")
        return names.cast(self.id_types.user), index

    @functools.cached_property
    def raw_items(self) -> pl.Series:
        """The id of each item 1, 2, .. in the type that tables have."""
        return self.dataset.catalogue.items["raw"].cast(self.id_types.item).alias("item")

    @tells_types
    def _checked(self, k: int, exclude_seen: bool | None, task: str) -> tuple[int, int | None]:
        """The number of a task, and how many of the last events keep their items out."""
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise RequestError(f"k={shown(k)}: must be an integer of at least 1")
        if task != "" and task not in self.tasks:
            known = ", ".join(self.tasks) or "none: it is a retrieval run"
            raise RequestError(f"task={shown(task)}: the tasks are {known}")
        if not isinstance(exclude_seen, bool | None):  # the text "false" would be true
            raise RequestError(f"exclude_seen={shown(exclude_seen)}: must be True, False or None")
        last = {None: self.left_out, True: None, False: 0}[exclude_seen]
        return self.tasks.index(task) if task else 0, last
