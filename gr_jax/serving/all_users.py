"""The best items for many users of the log at once.

Histories are columns of the log, never Python objects: they are packed into rows as in training,
and a block of users is compared with the catalogue by one product. A user gets what
`TrainedModel.recommend` answers for `TrainedModel.history(user)`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Int64

from gr_jax.data.batches import packing, tokenizer
from gr_jax.data.batches.packing import Slots, token_index
from gr_jax.data.batches.sequences import Spans
from gr_jax.data.dataset import Dataset, Events
from gr_jax.errors import shown
from gr_jax.serving import buckets
from gr_jax.serving.history import NAMED, HistoryReader, RawId, RequestError, known_of
from gr_jax.serving.index import MIN_K, ExactIndex, FaissIndex
from gr_jax.serving.popular import PopularItems, answer_all
from gr_jax.serving.query import Answerer, Query
from gr_jax.serving.retriever import KnnEncoder, Retriever
from gr_jax.serving.rows import RowMaker
from gr_jax.serving.trained import Trained

TOKENS = 8192  # of a batch of rows
VECTORS = (TOKENS // 8, TOKENS)  # histories of a batch
SHORTEST_ROW = 256  # tokens; several histories share a row
QUERIES = (32, 256)  # users that are compared with the catalogue in one call
TOGETHER = 32  # requests that a model answers in one call where there is no faster way


@dataclass(frozen=True)
class Wanted:
    """Which items may come, and when they would be taken."""

    k: int
    allowed: Bool[np.ndarray, " X1"]  # True for items that may come; the padding never does
    left_out: int | None  # last events of a history whose items do not come; None = of all
    at_time: int | None = None  # unix seconds; None = each user's last event
    task: int = 0  # ranking: whose prediction orders the items


class LogUsers:
    """The users whose histories a model reads, by their index in that log.

    Attributes:
      events: their events, in the items that the model knows.
      catalogue: where their names are.
    """

    def __init__(
        self,
        reader: HistoryReader,
        answerer: Answerer,
        popular: PopularItems,
        trained: Trained | None,
    ):
        """`trained`: of the model; None = of an export, which is slower."""
        self.reader, self.answerer, self.popular = reader, answerer, popular
        self.dataset = reader.dataset
        self._trained = trained
        if reader.newer is None:
            self.events, self._known, self._last = self.dataset.events, None, None
        else:
            self.events, self._known, self._last = _of_newer(reader.newer, self.dataset)
        self.catalogue = (reader.newer or reader.dataset).catalogue

    def __len__(self) -> int:
        return self.events.num_users

    def names(self, start: int, end: int) -> pl.Series:
        """Raw ids of users start .. end - 1, read from the disk."""
        raw = pl.scan_parquet(self.catalogue.folder / "users.parquet", glob=False).select("raw")
        return raw.slice(start, end - start).collect()["raw"]

    def index_of(self, raw: Sequence[RawId]) -> Int32[np.ndarray, " B"]:
        """The users with these raw ids, each once.

        Raises:
          RequestError: the log does not have some of them.
        """
        names = pl.Series("raw", list(dict.fromkeys(map(str, raw))), pl.String)
        found = places(names, self.catalogue.users["raw"])
        if (found < 0).any():
            raise RequestError(f"the log has no users {_some(names.filter(found < 0))}")
        return found

    def last_times(self, users: Int[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        """The time of each user's last event, of a known item or not."""
        if self._last is not None:
            return self._last[users]
        return self.events.timestamp[self.events.offsets[users + 1] - 1]

    def asked(self, users: Int[np.ndarray, " B"], at_time: int | None) -> Int64[np.ndarray, " B"]:
        """The moments asked about.

        Raises:
          RequestError: `at_time` is before the last event of a user.
        """
        last = self.last_times(users)
        if at_time is None:
            return last
        if late := int((last > at_time).sum()):
            raise RequestError(
                f"at_time={at_time} is before the last event of {late:,} users, the latest of"
                f" which is at {last.max()}"
            )
        return np.full(len(users), at_time, np.int64)

    # -- Vectors ----------------------------------------------------------------------------------

    def vectors(
        self, users: Int[np.ndarray, " B"], asked: Int64[np.ndarray, " B"]
    ) -> Float32[np.ndarray, "B D"]:
        """Retrieval: the vector of each user, all of whom have an event of a known item."""
        assert isinstance(self.answerer, Retriever)
        if self._trained is None:
            names = self.catalogue.raw_users(users)
            moments = zip(names, asked.tolist(), strict=True)
            return self.answerer.encoder([self.reader.of_log(u, at_time=t) for u, t in moments])
        encoder = self.answerer.encoder
        events, spans = self._histories(users, asked, encoder.maker.max_events)
        # All are queued before the first is waited for.
        found = list(self._encoded(events, spans, self._trained, encoder.maker))
        parts = [np.asarray(some)[: len(places)] for places, some in found]
        order = np.argsort(np.concatenate([places for places, _ in found]))
        vectors = np.concatenate(parts)[order]
        if not isinstance(encoder, KnnEncoder):
            return vectors
        return encoder.with_knn(vectors, events.item, spans.begin, spans.begin + spans.length)

    def _encoded(
        self, events: Events, spans: Spans, trained: Trained, maker: RowMaker
    ) -> Iterator[tuple[np.ndarray, Array]]:
        """Places in the spans, and their vectors: histories packed into rows, batch by batch."""
        max_length, scheme = maker.max_events, maker.scheme
        count = tokenizer.token_counts(events, spans, scheme)
        longest = max(SHORTEST_ROW, scheme.max_tokens(max_length))
        lengths = [size for size in buckets.lengths(longest) if size >= SHORTEST_ROW]
        for shorter, length in zip([0, *lengths], lengths, strict=False):
            group = np.flatnonzero((count > shorter) & (count <= length))
            if not len(group):
                continue
            num_rows = max(1, TOKENS // length)
            rows = packing.RowIndex(packing.pack(count[group], length))
            for first in range(0, rows.packing.num_rows, num_rows):
                chosen, row, column = rows.between(first, first + num_rows)
                chosen, slots = group[chosen], Slots(row, column, num_rows, length)
                some, catalogue = spans.take(chosen), self.dataset.catalogue
                batch = tokenizer.fill_rows(events, catalogue, some, scheme, slots)
                last = slots.start + count[chosen] - 1
                room = buckets.fitting(VECTORS, len(last))
                yield chosen, trained.encode(batch, _padded(last, room))

    def _histories(
        self, users: np.ndarray, asked: np.ndarray, max_length: int
    ) -> tuple[Events, Spans]:
        """What the model sees of these users; behind each stands the event that is asked about."""
        log = self.events
        end = log.offsets[users + 1]
        visible = np.minimum(end - log.offsets[users], max_length)
        offsets = np.concatenate([[0], np.cumsum(visible + 1)]).astype(np.int64)
        source, place = token_index(end - visible, visible), token_index(offsets[:-1], visible)

        def column(values: np.ndarray, at_end: np.ndarray | int) -> np.ndarray:
            filled = np.zeros(offsets[-1], values.dtype)
            filled[place], filled[offsets[1:] - 1] = values[source], at_end
            return filled

        events = Events(
            offsets=offsets,
            item=column(log.item, 1),
            timestamp=column(log.timestamp, asked),
            action=None if log.action is None else column(log.action, 0),
            rating=None if log.rating is None else np.zeros(offsets[-1], np.float32),
            **known_of(self.dataset.events, users if self._known is None else self._known[users]),
        )
        number = np.arange(len(users), dtype=np.int32)
        return events, Spans(number, offsets[:-1], offsets[:-1], visible.astype(np.int32))

    # -- Items ------------------------------------------------------------------------------------

    def best(
        self, users: Int[np.ndarray, " B"], wanted: Wanted
    ) -> tuple[Int32[np.ndarray, "B k"], Float32[np.ndarray, "B k"]]:
        """The best items of each user and their scores; 0 and -inf where there are no more.

        Raises:
          RequestError: as `asked`.
        """
        asked = self.asked(users, wanted.at_time)
        ids = np.zeros((len(users), wanted.k), np.int32)
        scores = np.full(ids.shape, -np.inf, np.float32)
        # Known items: a newer log may have users with none.
        length = np.diff(self.events.offsets)[users] if self._known is not None else 1
        fast = np.full(len(users), self._trained is not None and not self.answerer.tasks)
        fast &= length > 0
        if fast.any():
            vectors = self.vectors(users[fast], asked[fast])
            ids[fast], scores[fast] = self._nearest(users[fast], vectors, wanted)
        slow = np.flatnonzero(~fast)
        for part in buckets.parts(len(slow), TOGETHER):
            self._answer(users, slow[part], wanted, ids, scores)
        return ids, scores

    def _answer(
        self,
        users: np.ndarray,
        places: np.ndarray,
        wanted: Wanted,
        ids: np.ndarray,
        scores: np.ndarray,
    ) -> None:
        """Write the answers to requests, each of one user, into `ids` and `scores`."""
        allowed = None  # all
        if not wanted.allowed[1:].all():
            allowed = np.flatnonzero(wanted.allowed).astype(np.int32)
        queries = []
        for user in self.catalogue.raw_users(users[places]):
            history = self.reader.of_log(user, at_time=wanted.at_time)
            first = 0 if wanted.left_out is None else max(0, len(history) - wanted.left_out)
            seen = np.unique(history.item[first:])
            queries.append(Query(history, wanted.k, seen, allowed, wanted.task))
        for place, (scored, _) in zip(
            places, answer_all(queries, self.answerer, self.popular), strict=True
        ):
            ids[place, : len(scored.ids)] = scored.ids
            scores[place, : len(scored.ids)] = scored.scores

    def _nearest(
        self, users: np.ndarray, vectors: np.ndarray, wanted: Wanted
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest items of each user that are left."""
        assert isinstance(self.answerer, Retriever)
        index = exact(self.answerer)
        offsets = self.events.offsets
        first, end = offsets[users], offsets[users + 1]
        if wanted.left_out is not None:
            first = np.maximum(first, end - wanted.left_out)
        order = np.argsort(end - first, kind="stable")  # neighbours have as many to leave out
        allowed = jnp.asarray(_padded(wanted.allowed, len(index.vectors)))
        k = min(buckets.power_of_four(wanted.k, least=MIN_K), len(index.vectors))

        def searched() -> Iterator[tuple[np.ndarray, tuple[Array, Array]]]:
            for part in buckets.parts(len(users), QUERIES[-1]):
                some = order[part]
                size = buckets.fitting(QUERIES, len(some))
                seen = self._items(first[some], end[some], size)
                queries = _padded(vectors[some], size)
                yield some, _best(queries, index.vectors, allowed, seen, k=k, chunk=index.chunk)

        ids = np.zeros((len(users), wanted.k), np.int32)
        scores = np.full(ids.shape, -np.inf, np.float32)
        width = min(k, wanted.k)
        for some, found in list(searched()):  # all are queued before the first is waited for
            best, items = (np.asarray(values)[: len(some), :width] for values in found)
            ids[some, :width] = np.where(np.isneginf(best), 0, items)
            scores[some, :width] = best
        return ids, scores

    def _items(self, first: np.ndarray, end: np.ndarray, rows: int) -> Int32[np.ndarray, "Q S"]:
        """The items of events first .. end - 1 of each user, 0-padded to few shapes."""
        length = end - first
        width = buckets.power_of_four(int(length.max(initial=1)), least=buckets.SHORTEST)
        items = np.zeros((rows, width), np.int32)
        row, column = np.repeat(np.arange(len(first)), length), token_index(0 * length, length)
        items[row, column] = self.events.item[token_index(first, length)]
        return items


def exact(retriever: Retriever) -> ExactIndex:
    """The vectors of all items."""
    index = retriever.index
    found = index.exact if isinstance(index, FaissIndex) else index
    assert isinstance(found, ExactIndex)
    return found


def _of_newer(newer: Dataset, dataset: Dataset) -> tuple[Events, np.ndarray, np.ndarray]:
    """The events of a newer log in the items of `dataset`; its users there; their last times."""
    item = places(newer.catalogue.items["raw"], dataset.catalogue.items["raw"]) + 1
    user = places(newer.catalogue.users["raw"], dataset.catalogue.users["raw"])
    events = newer.events
    mapped = np.append(np.int32(0), item)[events.item]
    kept = np.flatnonzero(mapped)
    before = np.concatenate([[0], np.cumsum(mapped > 0)])
    last = np.asarray(events.timestamp[events.offsets[1:] - 1])
    known = Events(
        offsets=before[events.offsets].astype(np.int64),
        item=mapped[kept],
        timestamp=events.timestamp[kept],
        action=None if events.action is None else events.action[kept],
    )
    return known, user, last


def _some(names: pl.Series) -> str:
    """The first of some names, and how many more there are."""
    first = ", ".join(shown(name) for name in names.head(NAMED))
    return first + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")


def places(raw: pl.Series, among: pl.Series) -> Int32[np.ndarray, " n"]:
    """The place of each value among others; -1 where it is none of them."""
    table = pl.DataFrame({"raw": among, "place": np.arange(len(among), dtype=np.int32)})
    joined = raw.to_frame("raw").join(table, on="raw", how="left", maintain_order="left")
    return joined["place"].fill_null(-1).to_numpy()


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """Values, with zeros behind up to a length."""
    return np.pad(values, [(0, length - len(values))] + [(0, 0)] * (values.ndim - 1))


@functools.partial(jax.jit, static_argnames=("k", "chunk"))
def _best(
    queries: Float[Array, "Q D"],
    vectors: Float[Array, "rows D"],
    allowed: Bool[Array, " rows"],
    seen: Int[Array, "Q S"],
    *,
    k: int,
    chunk: int,
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """Scores and ids of the best items, best first; of equal scores the smaller id first."""
    number = jnp.arange(len(queries))[:, None]

    def merge(best, first):
        items = jax.lax.dynamic_slice_in_dim(vectors, first, chunk)
        may = jax.lax.dynamic_slice_in_dim(allowed, first, chunk)
        # Full float32, as in evaluation: a GPU would round the factors, and near ties decide ranks.
        scores = jnp.matmul(queries, items.T, precision=jax.lax.Precision.HIGHEST)
        scores = jnp.where(may, scores, -jnp.inf)
        is_here = (seen >= first) & (seen < first + chunk)
        place = jnp.where(is_here, seen - first, chunk)
        scores = scores.at[number, place].set(-jnp.inf, mode="drop")
        scores = jnp.concatenate([best[0], scores], 1)
        ids = jnp.broadcast_to(first + jnp.arange(chunk, dtype=jnp.int32), (len(queries), chunk))
        top, at = jax.lax.top_k(scores, k)
        return (top, jnp.take_along_axis(jnp.concatenate([best[1], ids], 1), at, axis=1)), None

    none = jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
    firsts = jnp.arange(0, len(vectors), chunk, dtype=jnp.int32)
    return jax.lax.scan(merge, none, firsts)[0]
