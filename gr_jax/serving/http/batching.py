"""Requests that arrive together are computed together, by one worker, after a bounded wait.

The work of a request is a number, such as its tokens. How long a unit takes is learned from the
batches; by that the work that may wait is bounded, and small requests are computed before large
ones that came a little earlier.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import heapq
import time
from collections.abc import Callable, Sequence
from typing import Any

from gr_jax.serving.http.limits import Busy

START_SECONDS = 1e-5  # that a unit of work is believed to take before the first batch
TOGETHER = 0.1  # seconds of work, as predicted, of a batch with more than one request
SMALL_SHARE = 0.05  # of the room that a request may fill which is still small
STAND_BACK = 4.0  # a request lets later ones pass for this many times its own seconds


@dataclasses.dataclass(order=True)
class _Waiting:
    turn: float  # the smallest is next
    since: float
    work: float = dataclasses.field(compare=False)
    request: Any = dataclasses.field(compare=False)
    future: asyncio.Future = dataclasses.field(compare=False)


class Batcher:
    """Batches of requests for one function, in a thread of its own; for use in one event loop.

    The next request waits at most `wait` seconds for company while the worker is free. While it
    computes, requests gather, so that batches grow with the load and no request waits in an idle
    server.
    """

    def __init__(
        self,
        answer: Callable[[list], Sequence],
        *,
        max_size: int,
        wait: float,
        room: int,
        room_seconds: float = float("inf"),
        observe: Callable[[int], None] = lambda size: None,
    ):
        """`answer`: requests -> answers in order; `room`: requests that may wait.

        `room_seconds`: work that may wait, as predicted; one request may always. `observe` is told
        the size of each batch.
        """
        self._answer, self._observe = answer, observe
        self.max_size, self.wait, self.room, self.room_seconds = max_size, wait, room, room_seconds
        self._waiting: list[_Waiting] = []  # a heap
        self._work = 0.0  # of all that wait or are being computed
        self._seconds_of_unit = START_SECONDS
        self._news = asyncio.Event()
        self._closed = False
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="answer")
        self._task: asyncio.Task | None = None

    def start(self) -> None:
        """Begin to take requests; inside the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def in_worker(self, function: Callable[[], Any]) -> Any:
        """Run a function in the worker's thread, between batches."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, function)

    @property
    def seconds_ahead(self) -> float:
        """Predicted seconds until a request that came now would be computed."""
        return self._work * self._seconds_of_unit

    def check_room(self, work: float = 1.0) -> None:
        """Raise `Busy` if a request with this work would not be taken."""
        if self._closed:
            raise Busy("the server is shutting down")
        if len(self._waiting) >= self.room:
            raise Busy(f"{self.room} requests are waiting already", retry_after=self.seconds_ahead)
        # A small request still has room where a large one has none.
        is_small = SMALL_SHARE * self.room_seconds > work * self._seconds_of_unit
        room = self.room_seconds * (2 if is_small else 1)
        if self._work and (self._work + work) * self._seconds_of_unit > room:
            told = f"{self.seconds_ahead:.1f} s of work are waiting already"
            raise Busy(told, retry_after=self.seconds_ahead)

    async def ask(self, request: Any, work: float = 1.0) -> Any:
        """The answer to one request.

        Raises:
          Busy: too many wait already, or the batcher is closed.
        """
        self.check_room(work)
        future, now = asyncio.get_running_loop().create_future(), time.monotonic()
        turn = now + STAND_BACK * work * self._seconds_of_unit
        heapq.heappush(self._waiting, _Waiting(turn, now, work, request, future))
        self._work += work
        self._news.set()
        return await future

    async def close(self) -> None:
        """Answer the requests that wait, then end."""
        self._closed = True
        self._news.set()
        if self._task is not None:
            await self._task
        self._worker.shutdown(wait=False)  # no batch is left in it, at most a warm-up

    async def _run(self) -> None:
        while True:
            await self._gather()
            batch = self._next()
            if batch:
                await self._compute(batch)
            elif self._closed and not self._waiting:
                return

    async def _gather(self) -> None:
        """Wait until a batch is full, a request has waited enough, or the end is near."""
        while not self._closed:
            self._news.clear()
            patience = None
            if self._waiting:
                patience = min(entry.since for entry in self._waiting) + self.wait
                patience -= time.monotonic()
                if len(self._waiting) >= self.max_size or patience <= 0:
                    return
            try:
                await asyncio.wait_for(self._news.wait(), patience)
            except TimeoutError:
                return

    def _next(self) -> list[_Waiting]:
        """The requests of a batch, which leave the heap, without those whose client has gone."""
        batch: list[_Waiting] = []
        seconds = 0.0
        while self._waiting and len(batch) < self.max_size:
            seconds += self._waiting[0].work * self._seconds_of_unit
            if batch and seconds > TOGETHER:
                break
            entry = heapq.heappop(self._waiting)
            if entry.future.done():
                self._work -= entry.work
            else:
                batch.append(entry)
        return batch

    async def _compute(self, batch: list[_Waiting]) -> None:
        self._observe(len(batch))
        requests, work = [entry.request for entry in batch], sum(entry.work for entry in batch)
        start = time.monotonic()
        try:
            answers = await self.in_worker(lambda: self._answer(requests))
        except Exception as error:  # of the model: those who asked get it, the server goes on
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(error)
            return
        finally:
            self._work = self._work - work if self._waiting else 0.0  # without errors of rounding
        # A large batch tells more of what a unit takes than a small one, and a recent one more.
        told, weight = (time.monotonic() - start) / work, min(0.5, work / (work + 1000))
        self._seconds_of_unit += weight * (told - self._seconds_of_unit)
        for entry, answer in zip(batch, answers, strict=True):
            if not entry.future.done():
                entry.future.set_result(answer)
