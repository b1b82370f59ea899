"""A trained run that answers: what would this user take next, and how good is each of these items for them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
from jaxtyping import Float32, Int32, Int64

from gr_jax.config import Config
from gr_jax.data.dataset import Dataset
from gr_jax.serving.history import AtTime, History, HistoryReader, RequestError, is_batch


@dataclasses.dataclass(frozen=True)
class Item:
    """An item of an answer."""

    item: str  # raw id
    title: str | None
    score: float  # cosine of retrieval; of ranking the first task, or the one asked for; of popularity share of events
    tasks: dict[str, float] | None = None  # ranking: the prediction for each task


@dataclasses.dataclass(frozen=True)
class Answer:
    """Items, best first, or in the order of the candidates."""

    items: tuple[Item, ...]
    source: Literal["model", "popularity"]  # popularity: the history holds no item of the catalogue
    skipped: int  # events of the history whose item the catalogue does not have

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclasses.dataclass(frozen=True)
class Query:
    """A checked request: for the k best items, or for scores of candidates."""

    history: History
    k: int = 0
    removed: Int32[np.ndarray, " _"] = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.int32)
    )
    allowed: Int32[np.ndarray, " _"] | None = None  # the only items that may come; None = all
    task: int = 0  # ranking: whose prediction orders the items
    # to be scored, in their order; None = the k best
    candidates: Int32[np.ndarray, " _"] | None = None


class TrainedModel:
    """A trained run in memory. Calls may come from several threads; one at a time is computed fastest.

    Attributes:
      dataset: items, users and their log. tasks: of ranking, in order; empty in retrieval.
      index: in retrieval, the items by their vectors.
    """

    def __init__(
        self,
        dataset: Dataset,
        reader: HistoryReader,
        *,
        encoder: Any,
        items: Any,
        rank: Any,
        tasks: Any,
        repeats: bool,
    ):
        """`encoder` and `items` (an index) of retrieval, or `rank` (a ranker) and the names of its `tasks`.

        repeats: whether items of the history may be recommended again, where a request does not tell.
        """
        self.dataset, self.reader, self.repeats = dataset, reader, repeats
        self.encoder, self.index, self.ranker, self.tasks = encoder, items, rank, tuple(tasks)

    @functools.cached_property
    def popularity(self) -> Int64[np.ndarray, " X1"]:
        """Events of each item in the log; of the padding 0."""
        return np.bincount(self.dataset.events.item, minlength=self.dataset.num_items + 1)

    @functools.cached_property
    def _by_popularity(self) -> Int32[np.ndarray, " X"]:
        """The items, the most frequent first, of equal ones the smaller id."""
        return (np.argsort(-self.popularity[1:], kind="stable") + 1).astype(np.int32)

    @property
    def cache(self) -> Any:
        """The `HistoryCache` of what was computed; None where there is none."""
        return getattr(self.encoder if self.ranker is None else self.ranker, "cache", None)

    def history(self, user: str | int) -> list:
        """The history of a user of the log as (item, time, actions).

        Raises:
          ConfigError: the log has no such user.
        """
        return self.reader.events_of(user)

    @overload
    def recommend(
        self, history: Sequence[tuple], k: int = 10, at_time: AtTime = None, **options: Any
    ) -> Answer: ...
    @overload
    def recommend(
        self,
        history: Sequence[Sequence[tuple]],
        k: int = 10,
        at_time: AtTime | Sequence[AtTime] = None,
        **options: Any,
    ) -> list[Answer]: ...
    def recommend(self, history: Any, k: int = 10, at_time: Any = None, **options: Any) -> Any:
        """The k best items for a user with this history; a list of histories gives a list of answers.

        An empty history is answered with the most popular items, and `Answer.source` says so.

        Args:
          history: (item, unix time[, action names]) in raw ids, in any order; unknown items are skipped and counted.
          k: how many; fewer come where the catalogue has no more that may.
          at_time: when the items would be taken: unix seconds, "now", or None for the time of the last event.
          options: as of `query`: user, exclude_seen, allow, deny, task; they hold for every history of a list, but
            `user` may be a list too.

        Raises:
          RequestError: what is asked cannot be answered, in one line.
        """
        return self._ask(history, at_time, {**options, "k": k})

    @overload
    def score(
        self,
        history: Sequence[tuple],
        candidates: Sequence[str | int],
        at_time: AtTime = None,
        **options: Any,
    ) -> Answer: ...
    @overload
    def score(
        self,
        history: Sequence[Sequence[tuple]],
        candidates: Sequence[Any],
        at_time: AtTime | Sequence[AtTime] = None,
        **options: Any,
    ) -> list[Answer]: ...
    def score(self, history: Any, candidates: Any, at_time: Any = None, **options: Any) -> Any:
        """Scores of the candidates, in their order; a list of histories gives a list of answers.

        Retrieval: cosine of history and item, by which `recommend` orders; an empty history gives the share of all
        events that the item has. Ranking: the prediction for each task.

        Args:
          history: as of `recommend`.
          candidates: raw ids, for all histories or, as a list of lists, for each.
          at_time: as of `recommend`.
          options: `user` and `task`.

        Raises:
          RequestError: a candidate that the catalogue does not have (it is named), or as `recommend`.
        """
        return self._ask(history, at_time, {**options, "candidates": candidates})

    def _ask(self, history: Any, at_time: Any, options: dict[str, Any]) -> Any:
        if not (is_batch(history) or isinstance(at_time, (list, tuple))):
            return self.answer([self.query(history, at_time=at_time, **options)])[0]
        count = len(history)
        for name in ("user", "candidates"):
            value = options.get(name)
            nested = name == "user" or (
                value is not None and len(value) and isinstance(value[0], (list, tuple))
            )
            if isinstance(value, (list, tuple)) and nested:
                options[name] = _for_each(value, count, name)
            else:
                options[name] = [value] * count
        times = (
            _for_each(at_time, count, "at_time")
            if isinstance(at_time, (list, tuple))
            else [at_time] * count
        )
        rest = {
            name: value for name, value in options.items() if name not in ("user", "candidates")
        }
        return self.answer(
            [
                self.query(one, at_time=when, user=user, candidates=candidates, **rest)
                for one, when, user, candidates in zip(
                    history, times, options["user"], options["candidates"], strict=True
                )
            ]
        )

    def query(
        self,
        history: Sequence | None,
        *,
        k: int = 10,
        at_time: AtTime = None,
        user: str | int | None = None,
        exclude_seen: bool | None = None,
        allow: Iterable[str | int] | None = None,
        deny: Iterable[str | int] = (),
        task: str = "",
        candidates: Sequence[str | int] | None = None,
    ) -> Query:
        """Checks a request, so that `answer` can take it together with others.

        Args:
          history, k, at_time: as of `recommend`; without a history, all that the log has of `user` is it.
          user: raw id of a user of the log whose attributes hold; unknown = none are known.
          exclude_seen: leave out the items of the history, visible to the model or not; None = unless the run was
            judged with them (`evaluate.exclude=none`).
          allow: raw ids that alone may come; None = all.
          deny: raw ids that may not come; those that the catalogue does not have are ignored.
          task: ranking: the task whose prediction orders the items; "" = the first.
          candidates: raw ids to score; None asks for the k best.

        Raises:
          RequestError: what is asked cannot be answered, in one line.
          ConfigError: there is no history, and the log has no such user.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise RequestError(f"k={k!r}: must be an integer of at least 1")
        if task and task not in self.tasks:
            known = ", ".join(self.tasks) or "none: it is a retrieval run"
            raise RequestError(f"task={task!r}: the tasks are {known}")
        if history is None:
            read = self.reader.of_log("" if user is None else user, at_time=at_time)
        else:
            read = self.reader.history(history, at_time=at_time, user=user)
        number = self.tasks.index(task) if task else 0
        if candidates is not None:
            return Query(read, task=number, candidates=self.reader.candidates(candidates))
        removed = self.dataset.catalogue.item_ids(list(deny))
        exclude_seen = not self.repeats if exclude_seen is None else exclude_seen
        removed = np.unique(np.concatenate([removed, read.item])) if exclude_seen else removed
        allowed = None if allow is None else np.unique(self.reader.candidates(allow))
        return Query(read, int(k), removed.astype(np.int32), allowed, number)

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """The answers to checked requests, computed together; each is what it would be alone."""
        answers: list[Answer | None] = [None] * len(queries)
        by_model = []
        for i, query in enumerate(queries):
            if len(query.history) or (self.ranker is not None and query.candidates is not None):
                by_model.append(i)
            else:
                answers[i] = self._popular(query)
        if by_model:
            compute = self._retrieve if self.ranker is None else self._rank
            for i, answer in zip(by_model, compute([queries[i] for i in by_model]), strict=True):
                answers[i] = answer
        return answers  # type: ignore[return-value]

    def _popular(self, query: Query) -> Answer:
        ids = query.candidates
        if ids is None:
            ids = self._by_popularity
            if query.allowed is not None:
                ids = ids[np.isin(ids, query.allowed)]
            ids = ids[: query.k + len(query.removed)]
            ids = ids[~np.isin(ids, query.removed)][: query.k]
        share = self.popularity[ids] / max(1, self.dataset.num_events)
        return self._answer(query, ids, share.astype(np.float32), source="popularity")

    def _choice(self, query: Query) -> Int32[np.ndarray, " M"]:
        """The candidates, or the items that may come."""
        if query.candidates is not None:
            return query.candidates
        ids = (
            np.arange(1, self.dataset.num_items + 1, dtype=np.int32)
            if query.allowed is None
            else query.allowed
        )
        return ids[~np.isin(ids, query.removed)]

    def _retrieve(self, queries: Sequence[Query]) -> list[Answer]:
        assert self.encoder is not None and self.index is not None
        vectors = self.encoder([query.history for query in queries])
        answers: list[Any] = [None] * len(queries)
        best = [i for i, query in enumerate(queries) if query.candidates is None]
        if best:
            chosen = [queries[i] for i in best]
            ids, scores = self.index.search(
                vectors[best],
                max(query.k for query in chosen),
                removed=[query.removed for query in chosen],
                allowed=[query.allowed for query in chosen],
            )
            for row, i in enumerate(best):
                found = ids[row, : queries[i].k]
                found = found[found > 0]
                answers[i] = self._answer(queries[i], found, scores[row, : len(found)])
        scored = [i for i, query in enumerate(queries) if query.candidates is not None]
        if scored:
            wanted: list[Any] = [queries[i].candidates for i in scored]
            width = max(1, *(len(ids) for ids in wanted))
            items = np.stack([np.pad(ids, (0, width - len(ids))) for ids in wanted])
            scores = self.index.scores(vectors[scored], items)
            for row, i in enumerate(scored):
                answers[i] = self._answer(queries[i], wanted[row], scores[row, : len(wanted[row])])
        return answers

    def _rank(self, queries: Sequence[Query]) -> list[Answer]:
        choices = [self._choice(query) for query in queries]
        predictions = self.ranker([query.history for query in queries], choices)
        answers = []
        for query, ids, prediction in zip(queries, choices, predictions, strict=True):
            if query.candidates is None:
                order = np.argsort(-prediction[:, query.task], kind="stable")[: query.k]
                ids, prediction = ids[order], prediction[order]
            answers.append(self._answer(query, ids, prediction[:, query.task], prediction))
        return answers

    def _answer(
        self,
        query: Query,
        ids: Int32[np.ndarray, " M"],
        scores: Float32[np.ndarray, " M"],
        predictions: Float32[np.ndarray, "M Y"] | None = None,
        *,
        source: Literal["model", "popularity"] = "model",
    ) -> Answer:
        tasks: list[Any] = [None] * len(ids)
        if predictions is not None:
            tasks = [dict(zip(self.tasks, row, strict=True)) for row in predictions.tolist()]
        named = zip(
            self.dataset.catalogue.raw_items(ids),
            self.dataset.catalogue.titles(ids),
            scores.tolist(),
            tasks,
            strict=True,
        )
        return Answer(tuple(Item(*item) for item in named), source, query.history.skipped)

    def warm_up(
        self, *, most_queries: int = 32, most_k: int = 100, most_candidates: int = 1024
    ) -> None:
        """Compiles everything that calls up to these sizes need, so that none of them waits for a compilation."""
        if self.ranker is not None:
            self.ranker.warm_up(
                most_rows=max(most_queries, -(-most_candidates // self.ranker.block))
            )
        else:
            assert self.encoder is not None and self.index is not None
            self.encoder.warm_up(most_rows=most_queries)
            self.index.warm_up(
                most=most_k, most_candidates=most_candidates, most_queries=most_queries
            )
        _ = (
            self._by_popularity,
            self.dataset.catalogue.item_ids([""]),
        )  # read now, not at the first request


def judged_with_repeats(config: Config) -> bool:
    """Whether evaluation ranks what the user had before, which is then recommended too; retrieval only."""
    return not config.ranking.tasks and config.evaluate.exclude == "none"


def _for_each(values: Sequence, count: int, name: str) -> list:
    if len(values) != count:
        raise RequestError(f"{name}: {len(values)} of them for {count} histories")
    return list(values)
