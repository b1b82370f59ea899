"""The model behind the endpoints: loaded while the server runs, and exchanged without a pause."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import time
from collections.abc import Callable, Sequence, Sized
from typing import Any, TypeVar

import polars as pl

from gr_jax.errors import line_of, shortened, shown
from gr_jax.serving.answer import Answer
from gr_jax.serving.history import RequestError
from gr_jax.serving.http import wire
from gr_jax.serving.http.batching import Batcher
from gr_jax.serving.http.limits import SMALL, Busy, Limits
from gr_jax.serving.http.metrics import Metrics
from gr_jax.serving.model import TrainedModel
from gr_jax.serving.query import Cache, Query

T = TypeVar("T")


class NoUser(ValueError):
    """The log has no such user."""


class NotReloaded(RuntimeError):
    """The workdir could not be loaded again; the model in use goes on."""


class Served:
    """A model that answers, with the batches of its requests."""

    def __init__(self, model: TrainedModel, limits: Limits, metrics: Metrics):
        self.model, self.limits = model, limits
        self.batcher = Batcher(
            self._answer,
            max_size=limits.batch,
            wait=limits.wait_ms / 1000,
            room=limits.queue,
            room_seconds=limits.queue_ms / 1000,
            observe=metrics.batch.observe,
        )
        raw, title = model.dataset.catalogue.items["raw"], model.dataset.catalogue.items["title"]
        text = title.fill_null("") + " " + raw
        self._catalogue = pl.DataFrame(
            {
                "raw": raw,
                "title": title,
                "text": text.str.to_lowercase(),
                "count": model.popularity[1:],
            }
        ).sort("count", descending=True, maintain_order=True)
        self.examples = wire.examples(model)

    def _answer(self, queries: Sequence[Query]) -> list[tuple[Answer, bytes]]:
        """Answers and their JSON, which would keep the event loop busy if it was made there."""
        version = self.model.version
        return [
            (answer, wire.answer_json(answer, version)) for answer in self.model.answer(queries)
        ]

    def warm_up(self) -> None:
        """Compile every program."""
        limits = self.limits
        self.model.warm_up(
            max_queries=limits.batch, max_k=limits.k, max_candidates=limits.candidates
        )

    def query(self, question: wire.Question) -> Query:
        """The checked request of a question.

        Raises:
          RequestError: it cannot be answered. NoUser: the log does not have its user.
        """
        model, asked = self.model, dict(question)
        history = asked.pop("history")
        for name in ("candidates", "allow", "deny"):
            _check_size(name, asked.get(name), self.limits.candidates)
        _check_size("history", history, self.limits.events)
        if asked.get("k", 1) > self.limits.k:
            raise RequestError(f"k={shown(asked['k'])}: at most {self.limits.k} items are given")
        if history is not None:
            events = [(event.item, event.time, event.action) for event in history]
            return model.query(events, **asked)
        if question.user is None:
            raise RequestError("give a history, or a user of the log")
        if model.dataset.catalogue.user_or(question.user, -1) < 0:
            raise NoUser(f"no user {shown(str(question.user))} in the log")
        return model.query(None, **asked)

    def find(self, text: str, limit: int) -> list[dict[str, Any]]:
        """Items whose title or raw id holds `text`, the most frequent first."""
        found = self._catalogue
        for word in text.lower().split():
            found = found.filter(pl.col("text").str.contains(word, literal=True))
        return [
            {"item": raw, "title": title}
            for raw, title in found.head(limit).select("raw", "title").iter_rows()
        ]

    def about(self) -> dict[str, Any]:
        """What /healthz tells of the model."""
        model = self.model
        actions = [
            name
            for i, name in enumerate(model.dataset.catalogue.actions)
            if not model.reader.always >> i & 1
        ]
        return {
            "version": model.version,
            "kind": "ranking" if model.tasks else "retrieval",
            "items": model.dataset.num_items,
            "tasks": list(model.tasks),
            "actions": actions,
        }


class Service:
    """The state of a server, which the endpoints share.

    Attributes:
      status: as /healthz tells it. served: the model that answers; None before the first is ready.
      failure: why the first could not be loaded or warmed up. was_loading: whether a thread was
        loading or compiling when it stopped.
    """

    def __init__(
        self,
        load: Callable[[], TrainedModel],
        limits: Limits,
        *,
        say: Callable[[str], None] = lambda line: None,
        when_settled: Callable[[], None] = lambda: None,
    ):
        """`say` is told what happens; `when_settled` is called once it is ready, or has failed."""
        self.limits, self.metrics = limits, Metrics(self._cache)
        self.status = "loading"
        self.served: Served | None = None
        self.failure: Exception | None = None
        self.was_loading = False
        self._load, self._say, self._when_settled = load, say, when_settled
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task | None = None  # that loads, or loaded last
        self._next: asyncio.Task | None = None  # a reload that has not begun
        self._old: set[asyncio.Task] = set()  # batchers that answer their last requests
        # Large bodies are read by one thread, so that the event loop waits for one at most.
        self._reader = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="read")
        self._loader = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="load")

    def start(self) -> None:
        """Begin to load the model; inside the event loop."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._first())

    async def _first(self) -> None:
        try:
            served = await self._bring_up()
        except Exception as error:
            self.status, self.failure = "failed", error
            return self._when_settled()
        self.served, self.status = served, "ready"
        self.metrics.ready.set(1)
        self.metrics.serves(served.model.version)
        # A full collection walks over all objects of jax, pydantic and the programs, for a third of
        # a second without answers; none of them is garbage.
        gc.collect()
        gc.freeze()
        self._when_settled()

    async def _bring_up(self) -> Served:
        """A model that is loaded, warmed up and takes requests."""
        limits = self.limits
        model = await self._in(self._loader, self._load)
        served = await self._in(self._loader, lambda: Served(model, limits, self.metrics))
        self._say(model.description())
        if self.served is None:
            self.status = "warming up"
        start = time.monotonic()
        self._say(
            f"warming up: up to {limits.batch} requests at once, {limits.k:,} items,"
            f" {limits.candidates:,} candidates"
        )
        await self._in(self._loader, served.warm_up)
        self._say(f"warmed up in {time.monotonic() - start:.1f} s")
        served.batcher.start()
        return served

    @staticmethod
    async def _in(pool: concurrent.futures.Executor, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, function)

    def reload_soon(self) -> None:
        """Begin a `reload`, from any thread or signal handler; what comes of it is said."""
        if self._loop is not None:  # else nothing was loaded yet
            self._loop.call_soon_threadsafe(self._plan_reload)

    async def reload(self) -> dict[str, str]:
        """Load the model again and exchange it, without a pause: the JSON of `wire.ReloadOut`.

        A reload that is asked for while another goes on comes after it, since the folder may have
        changed since that one began to read; several that wait become one.

        Raises:
          NotReloaded: it cannot be loaded; the model in use goes on.
        """
        return await asyncio.shield(self._plan_reload())

    def _plan_reload(self) -> asyncio.Task[dict[str, str]]:
        if self._next is None:
            if self._task is not None and not self._task.done():
                self._say("reload: once the present loading is over")
            self._next = asyncio.get_running_loop().create_task(self._reload_after(self._task))
            # Not every one who asks for a reload waits for it.
            self._next.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._next

    async def _reload_after(self, present: asyncio.Task | None) -> dict[str, str]:
        if present is not None:
            await asyncio.wait([present])
        self._task, self._next = self._next, None
        before = self.ready()
        self._say("reload: loading")
        try:
            self.served = served = await self._bring_up()
        except Exception as error:  # a run that is being written to, for one
            told = line_of(error) or f"{type(error).__name__}: {shortened(str(error))}"
            self._say(f"reload: the model in use goes on ({told})")
            self.metrics.reloads.labels("failed").inc()
            raise NotReloaded(f"the model in use goes on: {told}") from error
        self.metrics.serves(served.model.version)
        self.metrics.reloads.labels("done").inc()
        self._say(f"reload: done, version {served.model.version}")
        ending = asyncio.create_task(before.batcher.close())
        self._old.add(ending)
        ending.add_done_callback(self._old.discard)
        return {"version": served.model.version, "before": before.model.version}

    async def stop(self) -> None:
        """Answer what waits, then end; a compilation cannot be interrupted, and is not awaited."""
        self.was_loading = self._task is not None and not self._task.done()
        self.status = "shutting down"
        loading = [task for task in (self._next, self._task) if task is not None]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        if self.served is not None:
            await self.served.batcher.close()
        await asyncio.gather(*self._old)
        self._reader.shutdown(wait=False)
        self._loader.shutdown(wait=False)

    def ready(self) -> Served:
        """The model that answers.

        Raises:
          Busy: there is none yet, or none any more.
        """
        if self.served is None or self.status != "ready":
            raise Busy(f"the server is {self.status}")
        return self.served

    def check_room(self) -> None:
        """Raise `Busy` if a large request would not be answered."""
        self.ready().batcher.check_room()

    async def ask(self, kind: type[wire.Question], body: bytes) -> bytes:
        """The JSON of the answer to a question, which is checked and waits for its batch.

        Raises:
          Busy, RequestError, NoUser: as they say. NotJson, ValidationError: as `wire.read`.
        """

        def read() -> tuple[Query, float]:
            query = served.query(wire.read(kind, body))
            return query, served.model.answerer.work(query)

        while True:
            served = self.ready()
            if len(body) <= SMALL:
                query, work = read()
            else:
                query, work = await self._in(self._reader, read)
            if served is self.served:  # else it was exchanged meanwhile, and takes no more
                break
        answer, text = await served.batcher.ask(query, work)
        self.metrics.count(answer)
        return text

    def health(self) -> dict[str, Any]:
        """The JSON of /healthz."""
        return {"status": self.status} | (self.served.about() if self.served else {})

    def _cache(self) -> Cache | None:
        return self.served.model.cache if self.served else None


def _check_size(name: str, values: Sized | None, limit: int) -> None:
    if values is not None and len(values) > limit:
        raise RequestError(f"{name}: {len(values):,} of them, at most {limit:,} are taken")
