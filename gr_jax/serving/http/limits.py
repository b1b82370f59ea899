"""Limits of requests, and the middleware that enforces those on a body before it is used."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SMALL = 16_384  # bytes of a body that is always taken, and read on the event loop
UNREAD = 64 << 20  # bytes of a refused body that are read, so that the client reads the answer
UNREAD_PAUSE = 0.005  # seconds after each part of it, in which the event loop does other things


@dataclasses.dataclass(frozen=True)
class Limits:
    """The largest request, and how long others may wait for it."""

    body_bytes: int = 1 << 20  # of a request
    body_seconds: float = 20.0  # for a body to arrive
    events: int = 10_000  # of a history
    candidates: int = 10_000  # of a /score, and items of an allow or deny list
    k: int = 1000  # items of a /recommend
    batch: int = 32  # requests computed together
    wait_ms: float = 2.0  # the longest that a request waits for others while nothing is computed
    queue: int = 1024  # requests that may wait
    queue_ms: float = 1000.0  # of computation, as predicted, that may wait
    large_bodies: int = 8  # above `SMALL` that are received and read at a time
    head_seconds: float = 10.0  # for the head of a request to arrive
    send_seconds: float = 20.0  # that a client may stop reading its answer
    connections: int = 1000  # open at a time; fewer if the process may not open so many files


class Busy(RuntimeError):
    """There is more work than can be done soon, or the server cannot do any."""

    def __init__(self, message: str, *, retry_after: float = 1.0):
        super().__init__(message)
        self.retry_after = max(1, round(retry_after + 0.5))  # whole seconds


class BodyLimit:
    """ASGI middleware that reads a whole body within the limits, or answers 413, 408 or 503."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        limits: Limits,
        check_room: Callable[[], None] = lambda: None,
    ):
        """`check_room` raises `Busy` if there is no room for a large request."""
        self.app, self.limits, self._check_room = app, limits, check_room
        self._large = 0  # large bodies that are being received or read
        self._unread = asyncio.Semaphore(2)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limit = self.limits.body_bytes
        text = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        # The server has checked that it is a number; of many digits it is too large anyway.
        size = int(text) if text.isdigit() and len(text) < 19 else limit + 1
        if size > limit:
            told = f"the body has {size:,} bytes, at most {limit:,} are taken"
            return await self._refuse(receive, send, 413, told)
        is_large = size > SMALL or any(name == b"transfer-encoding" for name, _ in scope["headers"])
        if not is_large:
            return await self._pass_on(scope, receive, send)
        try:
            self._check_room()
            if self._large >= self.limits.large_bodies:
                raise Busy(f"{self._large} large requests are being read already")
        except Busy as busy:
            return await self._refuse(receive, send, 503, str(busy), busy.retry_after)
        self._large += 1
        try:
            await self._pass_on(scope, receive, send)
        finally:
            self._large -= 1

    async def _pass_on(self, scope: Any, receive: Receive, send: Send) -> None:
        """Receive the body, and hand the request on to the application."""
        limit, seconds = self.limits.body_bytes, self.limits.body_seconds
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    if len(body) > limit:
                        told = f"the body has more than {limit:,} bytes"
                        if not message.get("more_body", False):  # there is nothing left to read
                            return await answer_error(send, 413, told)
                        return await self._refuse(receive, send, 413, told)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            told = f"the body did not arrive within {seconds:g} s"
            return await answer_error(send, 408, told)
        first: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return first.pop() if first else await receive()

        return await self.app(scope, replay, send)

    async def _refuse(
        self, receive: Receive, send: Send, status: int, told: str, retry_after: int = 0
    ) -> None:
        """Answer with an error, and read what is left of the body.

        A connection that is closed with unread bytes is reset, and the client loses the answer.
        """
        await answer_error(send, status, told, retry_after=retry_after, whole=False)
        left = UNREAD
        try:
            # Two at a time: the clients that are refused must not keep the event loop busy.
            async with asyncio.timeout(self.limits.body_seconds), self._unread:
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
                    await asyncio.sleep(UNREAD_PAUSE)
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b""})


async def answer_error(
    send: Send, status: int, message: str, *, retry_after: int = 0, whole: bool = True
) -> None:
    """Answer with a JSON error, and end the connection; not `whole`: after an empty last part."""
    body = json.dumps({"error": message}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if retry_after:
        headers.append((b"retry-after", str(retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": not whole})
