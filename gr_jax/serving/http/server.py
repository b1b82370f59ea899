"""A trained model over HTTP: /recommend, /score, /items, /healthz, /metrics, and a page at /."""

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Sized
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from fastapi import Body, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.exceptions import HTTPException as StarletteHTTPException

import gr_jax
from gr_jax.errors import shortened, shown
from gr_jax.serving.history import RequestError
from gr_jax.serving.http import wire
from gr_jax.serving.http.batching import Batcher, Busy
from gr_jax.serving.http.limits import BodyLimit, Limits
from gr_jax.serving.model import Answer, TrainedModel
from gr_jax.serving.query import Cache
from gr_jax.serving.query import Query as CheckedQuery

PAGE = Path(__file__).with_name("page.html")
PATHS = ("/", "/recommend", "/score", "/items", "/healthz", "/metrics")
CLIENT_CLOSED = 499  # as nginx logs it: nobody was there to be answered
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": wire.ErrorOut, "description": "not JSON"},
    404: {"model": wire.ErrorOut, "description": "no such user in the log"},
    408: {"model": wire.ErrorOut, "description": "the body did not arrive in time"},
    413: {"model": wire.ErrorOut, "description": "the body is too large"},
    422: {"model": wire.ErrorOut, "description": "the request cannot be answered"},
    503: {"model": wire.ErrorOut, "description": "warming up, too busy or shutting down"},
}


class Metrics:
    """Counters of the server, in the text format of Prometheus."""

    def __init__(self):
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

    def watch(self, cache: Cache) -> None:
        """Report the counters of a cache of histories."""
        for name in ("hits", "misses", "evictions", "appended", "entries", "bytes"):
            gauge = Gauge(
                f"gr_jax_cache_{name}", f"Cached histories: {name}", registry=self.registry
            )
            gauge.set_function(lambda name=name: getattr(cache.counters, name))

    def count(self, answer: Answer) -> None:
        """Count an answer."""
        self.skipped.inc(answer.skipped)
        self.popular.inc(answer.source == "popularity")


class Service:
    """The model, its batches and its state, which the endpoints share."""

    def __init__(self, model: TrainedModel, limits: Limits):
        self.model, self.limits = model, limits
        self.metrics, self.status = Metrics(), "warming up"
        self.batcher = Batcher(
            model.answer,
            max_size=limits.batch,
            wait=limits.wait_ms / 1000,
            room=limits.queue,
            observe=self.metrics.batch.observe,
        )
        if (cache := model.cache) is not None:
            self.metrics.watch(cache)
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

    async def warm_up(self) -> None:
        """Compile every bucket, then take requests."""
        limits = self.limits
        sizes = {
            "max_queries": limits.batch,
            "max_k": limits.k,
            "max_candidates": limits.candidates,
        }
        try:
            await self.batcher.in_worker(lambda: self.model.warm_up(**sizes))
        except Exception:
            self.status = "failed"
            raise
        # A full collection walks over all objects of jax, pydantic and the programs, for a third of
        # a second without answers; none of them is garbage.
        gc.collect()
        gc.freeze()
        if self.status == "warming up":
            self.status = "ready"
            self.metrics.ready.set(1)

    async def ask(self, question: wire.RecommendIn | wire.ScoreIn) -> Response:
        """The answer to a question, which is checked and waits for its batch."""
        if self.status != "ready":
            raise Busy(f"the server is {self.status}")
        try:
            answer = await self.batcher.ask(self._query(question))
        except RequestError as error:
            raise HTTPException(422, str(error)) from None
        self.metrics.count(answer)
        return JSONResponse(wire.answer_out(answer))

    def _query(self, question: wire.RecommendIn | wire.ScoreIn) -> CheckedQuery:
        model, asked = self.model, dict(question)
        history = asked.pop("history")
        for name, limit in (
            ("candidates", self.limits.candidates),
            ("allow", self.limits.candidates),
        ):
            _check_size(name, asked.get(name), limit)
        _check_size("deny", asked.get("deny"), self.limits.candidates)
        _check_size("history", history, self.limits.events)
        if asked.get("k", 1) > self.limits.k:
            raise RequestError(f"k={asked['k']}: at most {self.limits.k} items are given")
        if history is not None:
            return model.query(
                [(event.item, event.time, event.action) for event in history], **asked
            )
        if question.user is None:
            raise RequestError("give a history, or a user of the log")
        if model.dataset.catalogue.user_or(question.user, -1) < 0:
            raise HTTPException(404, f"no user {shown(str(question.user))} in the log")
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

    def health(self) -> dict[str, Any]:
        """The JSON of /healthz."""
        model = self.model
        kind = "ranking" if model.tasks else "retrieval"
        about = {"items": model.dataset.num_items, "tasks": list(model.tasks)}
        actions = [
            name
            for i, name in enumerate(model.dataset.catalogue.actions)
            if not model.reader.always >> i & 1
        ]
        return {"status": self.status, "kind": kind, **about, "actions": actions}


def _check_size(name: str, values: Sized | None, limit: int) -> None:
    if values is not None and len(values) > limit:
        raise RequestError(f"{name}: {len(values):,} of them, at most {limit:,} are taken")


def make_app(model: TrainedModel, limits: Limits | None = None) -> FastAPI:
    """The application; it warms up at its start and answers waiting requests at its end."""
    service = Service(model, limits or Limits())
    shown = wire.examples(model)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        warming = asyncio.create_task(service.warm_up())
        yield
        service.status = "shutting down"
        warming.cancel()  # a compilation cannot be interrupted, but need not be awaited
        await asyncio.gather(warming, return_exceptions=True)
        await service.batcher.close()

    app = FastAPI(
        title="gr_jax",
        version=gr_jax.__version__,
        summary="What would this user take next?",
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(BodyLimit, limits=service.limits)
    _errors_as_json(app)
    _measure(app, service.metrics)

    @app.post("/recommend", response_model=wire.AnswerOut, responses=ERRORS)
    async def recommend(
        question: Annotated[wire.RecommendIn, Body(openapi_examples=shown["recommend"])],
    ) -> Response:
        """The k best items for a history, or for a user of the log."""
        return await service.ask(question)

    @app.post("/score", response_model=wire.AnswerOut, responses=ERRORS)
    async def score(
        question: Annotated[wire.ScoreIn, Body(openapi_examples=shown["score"])],
    ) -> Response:
        """Scores of candidates, in their order."""
        return await service.ask(question)

    @app.get("/items", response_model=wire.ItemsOut, responses={422: ERRORS[422]})
    def items(
        query: Annotated[
            str, Query(max_length=200, description="words of the title, or a raw id")
        ] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:
        """Items by title, the most frequent first."""
        return JSONResponse({"items": service.find(query, limit)})

    @app.get("/healthz", response_model=wire.HealthOut, responses={503: {"model": wire.HealthOut}})
    async def healthz() -> Response:
        """200 when every program is compiled, 503 before and during a shutdown."""
        return JSONResponse(service.health(), 200 if service.status == "ready" else 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters and latencies for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    return app


def _errors_as_json(app: FastAPI) -> None:
    """Every error is {"error": one line}."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return JSONResponse(
                {"error": f"the body is not JSON: {first.get('ctx', {}).get('error', '')}"}, 400
            )
        # Not `input`: what was sent may be large, or not be text at all.
        place = shortened(".".join(str(part) for part in first["loc"][1:]))
        text = f"{place or 'body'}: {first['msg'].removeprefix('Value error, ')}"
        return JSONResponse({"error": text.encode("ascii", "replace").decode()}, 422)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        text = str(error.detail).encode("ascii", "backslashreplace").decode()
        return JSONResponse({"error": text}, error.status_code, headers=error.headers)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        return JSONResponse({"error": str(error)}, 503, headers={"retry-after": "1"})

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "internal error; see the server's log"}, 500)


def _measure(app: FastAPI, metrics: Metrics) -> None:
    """Counts every request, also those that never reach an endpoint; added last, so outermost."""

    class Measured:
        def __init__(self, app: Any):
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return await self.app(scope, receive, send)
            path = scope["path"] if scope["path"] in PATHS else "other"
            start, status = time.perf_counter(), CLIENT_CLOSED

            def count() -> None:
                metrics.requests.labels(path, status).inc()
                metrics.seconds.labels(path).observe(time.perf_counter() - start)

            async def noting(message: Any) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                elif not message.get("more_body", False):
                    count()  # before the client has the answer, and may ask for the metrics
                    counted.append(status)
                await send(message)

            counted: list[int] = []
            try:
                await self.app(scope, receive, noting)
            except Exception:
                status = 500
                raise
            finally:
                if not counted:
                    count()

    app.add_middleware(Measured)
