"""Requests that arrive together are computed together, by one worker, after a bounded wait."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any


class Busy(RuntimeError):
    """The queue is full, or closed for a shutdown."""


class Batcher:
    """Batches of requests for one function, in a thread of its own; for use in one event loop.

    The oldest request waits at most `wait` seconds for company while the worker is free. While it
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
        observe: Callable[[int], None] = lambda size: None,
    ):
        """`answer`: requests -> answers in order; `room`: requests that may wait.

        `observe` is told the size of each batch.
        """
        self._answer, self._observe = answer, observe
        self.max_size, self.wait, self.room = max_size, wait, room
        self._waiting: deque[tuple[Any, asyncio.Future, float]] = deque()
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

    async def ask(self, request: Any) -> Any:
        """The answer to one request.

        Raises:
          Busy: too many wait already, or the batcher is closed.
        """
        if self._closed:
            raise Busy("the server is shutting down")
        if len(self._waiting) >= self.room:
            raise Busy(f"{self.room} requests are waiting already")
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future, time.monotonic()))
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
            batch = [self._waiting.popleft() for _ in range(min(self.max_size, len(self._waiting)))]
            batch = [entry for entry in batch if not entry[1].done()]  # done: the client has gone
            if batch:
                await self._compute(batch)
            elif self._closed and not self._waiting:
                return

    async def _gather(self) -> None:
        """Wait until a batch is full, its oldest request has waited enough, or the end is near."""
        while not self._closed:
            self._news.clear()
            patience = None
            if self._waiting:
                patience = self._waiting[0][2] + self.wait - time.monotonic()
                if len(self._waiting) >= self.max_size or patience <= 0:
                    return
            try:
                await asyncio.wait_for(self._news.wait(), patience)
            except TimeoutError:
                return

    async def _compute(self, batch: list[tuple[Any, asyncio.Future, float]]) -> None:
        self._observe(len(batch))
        requests = [request for request, _, _ in batch]
        try:
            answers = await self.in_worker(lambda: self._answer(requests))
        except Exception as error:  # of the model: those who asked get it, the server goes on
            for _, future, _ in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future, _), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
