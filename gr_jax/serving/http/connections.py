"""Connections that send nothing, or half a head, or do not read: they must not lock others out."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING

from gr_jax.serving.http.limits import Limits

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as HttpProtocol
else:
    from uvicorn.protocols.http.auto import AutoHTTPProtocol as HttpProtocol

OTHER_FILES = 64  # that the process has open besides its connections
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: 34\r\n\r\n" + b'{"error": "too many connections"}\n'
)


def most_connections(limits: Limits) -> int:
    """Connections that may be open: those of the limits, or fewer if files are short."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = limits.connections if files == resource.RLIM_INFINITY else files - OTHER_FILES
    return max(8, min(limits.connections, room))


def limited(limits: Limits) -> type[asyncio.Protocol]:
    """The HTTP protocol of uvicorn with limits of connections and of times.

    A connection beyond the limit takes the place of the one that has been waiting longest for a
    request; if all of them are being answered it is told so and closed.
    """
    most = most_connections(limits)

    class Connection(HttpProtocol):
        def connection_made(self, transport) -> None:  # of asyncio or of uvloop
            super().connection_made(transport)
            self._head_timer: asyncio.TimerHandle | None = None
            self._send_timer: asyncio.TimerHandle | None = None
            self._since = self.loop.time()
            others = [
                other
                for other in self.connections
                if isinstance(other, Connection) and not other.transport.is_closing()
            ]
            if len(others) > most:
                idle = [other for other in others if other.has_no_request() and other is not self]
                if not idle:
                    transport.write(_FULL)
                    return transport.close()
                min(idle, key=lambda other: other._since).transport.abort()
            self._expect_head()

        def has_no_request(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _expect_head(self) -> None:
            self._since = self.loop.time()
            self._head_timer = self.loop.call_later(limits.head_seconds, self._end_if_no_request)

        def _end_if_no_request(self) -> None:
            self._head_timer = None
            if self.has_no_request() and not self.transport.is_closing():
                self.transport.close()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self.has_no_request():
                self._cancel("_head_timer")
            elif self._head_timer is None and not self.transport.is_closing():
                self._expect_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._send_timer = self.loop.call_later(limits.send_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._cancel("_send_timer")

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel("_head_timer")
            self._cancel("_send_timer")
            super().connection_lost(exc)

        def _cancel(self, name: str) -> None:
            if (timer := getattr(self, name)) is not None:
                timer.cancel()
            setattr(self, name, None)

    return Connection
