"""Limits of a request, and the middleware that enforces those on its body before it is read."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


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


class BodyLimit:
    """ASGI middleware that reads a whole body within the limits, or answers 413 or 408 in JSON."""

    def __init__(self, app: Callable[..., Awaitable[None]], *, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limit = self.limits.body_bytes
        size = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if size.isdigit() and int(size) > limit:
            return await refuse(
                send, 413, f"the body has {int(size):,} bytes, at most {limit:,} are taken"
            )
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    if len(body) > limit:
                        return await refuse(send, 413, f"the body has more than {limit:,} bytes")
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            return await refuse(
                send, 408, f"the body did not arrive within {self.limits.body_seconds:g} s"
            )
        first: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return first.pop() if first else await receive()

        return await self.app(scope, replay, send)


async def refuse(send: Send, status: int, message: str) -> None:
    """Answer with a JSON error and end the connection."""
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"connection", b"close")],
        }
    )
    await send({"type": "http.response.body", "body": body})
