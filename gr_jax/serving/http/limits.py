"""What a request may cost, kept before any of it is read: the size of its body and the time it takes to arrive."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

CACHE_MB = 256.0  # memory for what was computed of histories, MiB

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
    """ASGI middleware: reads the whole body within the limits, or answers 413 or 408 with a JSON message."""

    def __init__(self, app: Callable[..., Awaitable[None]], *, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        most = self.limits.body_bytes
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if told.isdigit() and int(told) > most:
            return await refuse(
                send, 413, f"the body has {int(told):,} bytes, at most {most:,} are taken"
            )
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    if len(body) > most:
                        return await refuse(send, 413, f"the body has more than {most:,} bytes")
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
    """Answers with a JSON error and ends the connection."""
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
