"""A trained model in memory: recommendations, and scores of candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast, no_type_check, overload

import numpy as np

from gr_jax.config import Config
from gr_jax.serving.answer import Answer, Item
from gr_jax.serving.history import AtTime, Event, RawEvent, RawId, RequestError, in_list, is_batch
from gr_jax.serving.many import ModelOfMany
from gr_jax.serving.popular import Source, answer_all
from gr_jax.serving.query import Cache, Query, Scored


class TrainedModel(ModelOfMany):
    """A trained model. Calls may come from several threads; one at a time is computed fastest.

    Attributes:
      dataset: items, users and their log. reader: of raw histories.
      answerer: the `Retriever` or `Ranker` that computes the answers.
      version: a short hash of what the answers depend on, told with them when served.
    """

    @property
    def cache(self) -> Cache | None:
        """The cache of histories; None if there is none."""
        return self.answerer.cache

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
        number, last = self._checked(k, exclude_seen, task)
        if history is None:
            read = self.reader.of_log("" if user is None else user, at_time=at_time)
        else:
            read = self.reader.history(history, at_time=at_time, user=user)
        if candidates is not None:
            return Query(read, task=number, candidates=self.reader.items(candidates, "candidates"))
        removed = self.reader.items(deny, "deny", may_be_unknown=True)
        seen = read.item if last is None else read.item[max(0, len(read) - last) :]
        removed = np.unique(np.concatenate([removed, seen]))
        allowed = None if allow is None else np.unique(self.reader.items(allow, "allow"))
        k = min(int(k), self.dataset.num_items)
        return Query(read, k, removed.astype(np.int32), allowed, number)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """The answers to checked requests, computed together; each is what it would be alone."""
        answers = answer_all(queries, self.answerer, self.popular)
        return [self._answer(query, *one) for query, one in zip(queries, answers, strict=True)]

    def _answer(self, query: Query, scored: Scored, source: Source) -> Answer:
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
        _ = self.popular.in_order, self.dataset.catalogue.item_ids([""])

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
