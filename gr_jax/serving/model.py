"""A trained model in memory: recommendations, and scores of candidates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, cast, no_type_check, overload

import numpy as np
from jaxtyping import Int32, Int64

from gr_jax.config import Config
from gr_jax.data.dataset import Dataset
from gr_jax.errors import shown
from gr_jax.serving.history import (
    AtTime,
    Event,
    HistoryReader,
    RawEvent,
    RawId,
    RequestError,
    in_list,
    is_batch,
)
from gr_jax.serving.query import Answerer, Cache, Query, Scored


@dataclasses.dataclass(frozen=True)
class Item:
    """An item of an answer."""

    item: str  # raw id
    title: str | None
    # retrieval: cosine; ranking: prediction of the task that orders; popularity: share of events
    score: float
    tasks: dict[str, float] | None = None  # ranking: the prediction for each task


@dataclasses.dataclass(frozen=True)
class Answer:
    """Items, best first, or in the order of the candidates."""

    items: tuple[Item, ...]
    source: Literal["model", "popularity"]  # popularity: no item of the history is known
    skipped: int  # events of the history whose item the catalogue does not have

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class TrainedModel:
    """A trained model. Calls may come from several threads; one at a time is computed fastest.

    Attributes:
      dataset: items, users and their log. reader: of raw histories.
      answerer: the `Retriever` or `Ranker` that computes the answers.
      version: a short hash of what the answers depend on, told with them when served.
    """

    def __init__(
        self,
        dataset: Dataset,
        reader: HistoryReader,
        answerer: Answerer,
        *,
        left_out: int | None,
        version: str = "",
    ):
        """`left_out`: as of `left_out_events`, unless a request says otherwise."""
        self.dataset, self.reader, self.answerer = dataset, reader, answerer
        self.left_out, self.version = left_out, version

    @property
    def tasks(self) -> tuple[str, ...]:
        """Labels that ranking predicts, in order; () in retrieval."""
        return self.answerer.tasks

    @property
    def cache(self) -> Cache | None:
        """The cache of histories; None if there is none."""
        return self.answerer.cache

    @functools.cached_property
    def popularity(self) -> Int64[np.ndarray, " X1"]:
        """Events of each item in the log; of the padding 0."""
        return np.bincount(self.dataset.events.item, minlength=self.dataset.num_items + 1)

    @functools.cached_property
    def _by_popularity(self) -> Int32[np.ndarray, " X"]:
        """The items, the most frequent first, of equal ones the smaller id."""
        return (np.argsort(-self.popularity[1:], kind="stable") + 1).astype(np.int32)

    def history(self, user: RawId) -> list[Event]:
        """The history of a user of the log as (item, time, actions).

        Raises:
          ConfigError: the log has no such user.
        """
        return self.reader.events_of(user)

    @overload
    def recommend(
        self,
        history: Sequence[RawEvent],
        k: int = 10,
        at_time: AtTime = None,
        *,
        user: RawId | None = None,
        exclude_seen: bool | None = None,
        allow: Iterable[RawId] | None = None,
        deny: Iterable[RawId] = (),
        task: str = "",
    ) -> Answer: ...
    @overload
    def recommend(
        self,
        history: Sequence[Sequence[RawEvent]],
        k: int = 10,
        at_time: AtTime | Sequence[AtTime] = None,
        *,
        user: RawId | Sequence[RawId | None] | None = None,
        exclude_seen: bool | None = None,
        allow: Iterable[RawId] | None = None,
        deny: Iterable[RawId] = (),
        task: str = "",
    ) -> list[Answer]: ...
    @no_type_check  # by the tests: a wrong type is told in a line, as any other mistake
    def recommend(
        self,
        history: Sequence,
        k: int = 10,
        at_time: AtTime | Sequence[AtTime] = None,
        *,
        user: RawId | Sequence[RawId | None] | None = None,
        exclude_seen: bool | None = None,
        allow: Iterable[RawId] | None = None,
        deny: Iterable[RawId] = (),
        task: str = "",
    ) -> Answer | list[Answer]:
        """The k best items for a user with this history; a list of answers for a list of histories.

        An empty history is answered with the most popular items, and `Answer.source` says so.

        Args:
          history: (item, time[, action names]) in raw ids, in any order; unknown items are skipped
            and counted. A time is in unix seconds, a datetime (without a zone: in UTC), a pandas
            Timestamp, a numpy datetime64 or ISO text. Fractions of a second order the events.
          k: number of items; fewer come if the catalogue has no more that may.
          at_time: when the items would be taken: a time, "now", or None for the time of the last
            event. A list gives a time for each history.
          user: raw id of a user of the log whose features hold, or a list of them; unknown = no
            features.
          exclude_seen: leave out the items of the history, visible to the model or not; None = as
            the run was evaluated (`evaluate.exclude`).
          allow: raw ids that alone may come; None = all.
          deny: raw ids that may not come; those that the catalogue does not have are ignored.
          task: ranking: the task whose prediction orders the items; "" = the first.

        Raises:
          RequestError: the request cannot be answered, in one line.
        """
        # Iterables are read once for all histories.
        history = in_list(history, "history", "(item, time)")
        allowed = None if allow is None else in_list(allow, "allow", "items")
        denied = in_list(deny, "deny", "items")

        def ask(history: list, at_time: AtTime, user: RawId | None) -> Query:
            return self.query(
                history,
                k=k,
                at_time=at_time,
                user=user,
                exclude_seen=exclude_seen,
                allow=allowed,
                deny=denied,
                task=task,
            )

        if not _is_list_of_requests(history, at_time):
            return self.answer([ask(history, cast("AtTime", at_time), cast("RawId | None", user))])[
                0
            ]
        times: Sequence[AtTime] = _each(at_time, history, "at_time")
        users: Sequence[RawId | None] = _each(user, history, "user")
        return self.answer([ask(*one) for one in zip(history, times, users, strict=True)])

    @overload
    def score(
        self,
        history: Sequence[RawEvent],
        candidates: Sequence[RawId],
        at_time: AtTime = None,
        *,
        user: RawId | None = None,
        task: str = "",
    ) -> Answer: ...
    @overload
    def score(
        self,
        history: Sequence[Sequence[RawEvent]],
        candidates: Sequence[RawId] | Sequence[Sequence[RawId]],
        at_time: AtTime | Sequence[AtTime] = None,
        *,
        user: RawId | Sequence[RawId | None] | None = None,
        task: str = "",
    ) -> list[Answer]: ...
    @no_type_check
    def score(
        self,
        history: Sequence,
        candidates: Sequence,
        at_time: AtTime | Sequence[AtTime] = None,
        *,
        user: RawId | Sequence[RawId | None] | None = None,
        task: str = "",
    ) -> Answer | list[Answer]:
        """Scores of the candidates, in their order; a list of histories gives a list of answers.

        Retrieval: cosine of history and item, by which `recommend` orders; an empty history gives
        the share of all events that the item has. Ranking: the prediction for each task.

        Args:
          history, at_time, user, task: as of `recommend`.
          candidates: raw ids, for all histories or, as a list of lists, for each.

        Raises:
          RequestError: a candidate that the catalogue does not have (it is named), or as
            `recommend`.
        """

        history = in_list(history, "history", "(item, time)")
        candidates = in_list(candidates, "candidates", "items")

        def ask(history: list, at_time: AtTime, user: RawId | None, ids: list) -> Query:
            return self.query(history, at_time=at_time, user=user, task=task, candidates=ids)

        if not _is_list_of_requests(history, at_time):
            time, name = cast("AtTime", at_time), cast("RawId | None", user)
            return self.answer([ask(history, time, name, candidates)])[0]
        times: Sequence[AtTime] = _each(at_time, history, "at_time")
        users: Sequence[RawId | None] = _each(user, history, "user")
        nested = len(candidates) > 0 and isinstance(candidates[0], (list, tuple))
        lists = _each(candidates if nested else [candidates] * len(history), history, "candidates")
        return self.answer([ask(*one) for one in zip(history, times, users, lists, strict=True)])

    @no_type_check
    def query(
        self,
        history: Sequence | None,
        *,
        k: int = 10,
        at_time: AtTime = None,
        user: RawId | None = None,
        exclude_seen: bool | None = None,
        allow: Iterable[RawId] | None = None,
        deny: Iterable[RawId] = (),
        task: str = "",
        candidates: Sequence[RawId] | None = None,
    ) -> Query:
        """A checked request, which `answer` takes together with others.

        Args:
          history: as of `recommend`; None = all events of `user` in the log.
          k, at_time, user, exclude_seen, allow, deny, task: as of `recommend`.
          candidates: raw ids to score; None asks for the k best.

        Raises:
          RequestError: the request cannot be answered, in one line.
          ConfigError: there is no history, and the log has no such user.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise RequestError(f"k={shown(k)}: must be an integer of at least 1")
        if task != "" and task not in self.tasks:
            known = ", ".join(self.tasks) or "none: it is a retrieval run"
            raise RequestError(f"task={shown(task)}: the tasks are {known}")
        if not isinstance(exclude_seen, bool | None):  # the text "false" would be true
            raise RequestError(f"exclude_seen={shown(exclude_seen)}: must be True, False or None")
        if history is None:
            read = self.reader.of_log("" if user is None else user, at_time=at_time)
        else:
            read = self.reader.history(history, at_time=at_time, user=user)
        number = self.tasks.index(task) if task else 0
        if candidates is not None:
            return Query(read, task=number, candidates=self.reader.items(candidates, "candidates"))
        removed = self.reader.items(deny, "deny", may_be_unknown=True)
        last = {None: self.left_out, True: None, False: 0}[exclude_seen]
        seen = read.item if last is None else read.item[max(0, len(read) - last) :]
        removed = np.unique(np.concatenate([removed, seen]))
        allowed = None if allow is None else np.unique(self.reader.items(allow, "allow"))
        k = min(int(k), self.dataset.num_items)
        return Query(read, k, removed.astype(np.int32), allowed, number)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """The answers to checked requests, computed together; each is what it would be alone."""
        by_model = [i for i, query in enumerate(queries) if self.answerer.can_answer(query)]
        computed = self.answerer.answer([queries[i] for i in by_model]) if by_model else []
        scored = dict(zip(by_model, computed, strict=True))
        return [
            self._answer(query, scored[i], "model")
            if i in scored
            else self._answer(query, self._popular(query), "popularity")
            for i, query in enumerate(queries)
        ]

    def _popular(self, query: Query) -> Scored:
        ids = query.candidates
        if ids is None:
            ids = self._by_popularity
            if query.allowed is not None:
                ids = ids[np.isin(ids, query.allowed)]
            ids = ids[: query.k + len(query.removed)]
            ids = ids[~np.isin(ids, query.removed)][: query.k]
        share = self.popularity[ids] / max(1, self.dataset.num_events)
        return Scored(ids, share.astype(np.float32))

    def _answer(
        self, query: Query, scored: Scored, source: Literal["model", "popularity"]
    ) -> Answer:
        tasks: list[dict[str, float] | None] = [None] * len(scored.ids)
        if scored.predictions is not None:
            tasks = [dict(zip(self.tasks, row, strict=True)) for row in scored.predictions.tolist()]
        items = zip(
            self.dataset.catalogue.raw_items(scored.ids),
            self.dataset.catalogue.titles(scored.ids),
            scored.scores.tolist(),
            tasks,
            strict=True,
        )
        return Answer(tuple(Item(*item) for item in items), source, query.history.skipped)

    def warm_up(
        self, *, max_queries: int = 32, max_k: int = 100, max_candidates: int = 1024
    ) -> None:
        """Compile everything that calls up to these sizes need, so that none waits for it."""
        self.answerer.warm_up(max_queries=max_queries, max_k=max_k, max_candidates=max_candidates)
        # Read now and not at the first request:
        _ = self._by_popularity, self.dataset.catalogue.item_ids([""])

    def description(self) -> str:
        """The kind of model and its size, in a line."""
        kind = "ranking" if self.tasks else "retrieval"
        return f"{kind}  {self.dataset.num_items:,} items, {self.answerer.description()}"


def left_out_events(config: Config) -> int | None:
    """How many of the last events of a history keep their items out of a list; None = all.

    As evaluation ranks. Lists of a ranking run leave out all.
    """
    by_rule = {"history": None, "visible": config.data.max_length, "none": 0}
    return None if config.ranking.tasks else by_rule[config.evaluate.exclude]


def _is_list_of_requests(history: Sequence, at_time: AtTime | Sequence[AtTime]) -> bool:
    return is_batch(history) or isinstance(at_time, (list, tuple))


def _each(value: object, histories: Sequence, name: str) -> Sequence:
    """The value for each history: one for all, or a list of as many."""
    if not isinstance(value, (list, tuple)):
        return [value] * len(histories)
    if len(value) != len(histories):
        raise RequestError(f"{name}: {len(value)} of them for {len(histories)} histories")
    return value
