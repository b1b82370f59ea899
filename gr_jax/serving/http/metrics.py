"""Counters of the server for Prometheus, and the middleware that counts requests."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gr_jax.serving.answer import Answer
from gr_jax.serving.http.limits import Message, Receive, Send
from gr_jax.serving.query import Cache

CLIENT_CLOSED = 499  # as nginx logs it: nobody was there any more to be answered
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counters of the server, in the text format of Prometheus."""

    def __init__(self, cache: Callable[[], Cache | None]):
        """`cache`: the cache of histories that is in use, if there is one."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gr_jax_requests", "Requests", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "gr_jax_request_seconds",
            "Time to answer",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "gr_jax_batch_requests",
            "Requests computed together",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.skipped = Counter(
            "gr_jax_skipped_events", "Events of unknown items", registry=self.registry
        )
        self.popular = Counter(
            "gr_jax_popularity_answers", "Answers without a known history", registry=self.registry
        )
        self.ready = Gauge("gr_jax_ready", "1 after the warm-up", registry=self.registry)
        self._model = Gauge(
            "gr_jax_model", "1 for the model that answers", ["version"], registry=self.registry
        )
        self.reloads = Counter(
            "gr_jax_reloads", "Reloads by how they ended", ["outcome"], registry=self.registry
        )
        for name in ("hits", "misses", "evictions", "appended", "entries", "bytes"):
            gauge = Gauge(
                f"gr_jax_cache_{name}", f"Cached histories: {name}", registry=self.registry
            )

            def value(name: str = name) -> float:
                in_use = cache()
                return 0.0 if in_use is None else float(getattr(in_use.counters, name))

            gauge.set_function(value)

    def serves(self, version: str) -> None:
        """Note the version of the model that answers from now on."""
        self._model.clear()
        self._model.labels(version).set(1)

    def count(self, answer: Answer) -> None:
        """Count an answer."""
        self.skipped.inc(answer.skipped)
        self.popular.inc(answer.source == "popularity")


class Measured:
    """ASGI middleware that counts every request, also one that reaches no endpoint."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        metrics: Metrics,
        paths: Collection[str],
    ):
        """`paths`: that are counted by name, the others as "other"."""
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"] if scope["path"] in self.paths else "other"
        start, status, is_counted = time.perf_counter(), CLIENT_CLOSED, False

        def count() -> None:
            nonlocal is_counted
            if not is_counted:
                self.metrics.requests.labels(path, status).inc()
                self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
            is_counted = True

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                count()  # before the client has the answer, and may ask for the metrics
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception:
            status = 500
            raise
        finally:
            count()
