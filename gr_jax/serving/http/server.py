"""A trained model over HTTP: /recommend, /score, /items, /healthz, /metrics, /reload, a page at /
and one at /docs."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Route

import gr_jax
from gr_jax.errors import shortened, shown
from gr_jax.serving.history import RequestError
from gr_jax.serving.http import guard, reference, wire
from gr_jax.serving.http.limits import BodyLimit, Busy, Limits
from gr_jax.serving.http.metrics import Measured
from gr_jax.serving.http.service import NotReloaded, NoUser, Service
from gr_jax.serving.http.wire import NotJson
from gr_jax.serving.model import TrainedModel

PAGE = Path(__file__).with_name("page.html")
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": wire.ErrorOut, "description": "not JSON, or a host that is not served"},
    404: {"model": wire.ErrorOut, "description": "no such user in the log"},
    408: {"model": wire.ErrorOut, "description": "the body did not arrive in time"},
    413: {"model": wire.ErrorOut, "description": "the body is too large"},
    415: {"model": wire.ErrorOut, "description": "the body is not declared as JSON"},
    422: {"model": wire.ErrorOut, "description": "the request cannot be answered"},
    503: {"model": wire.ErrorOut, "description": "not ready, too busy or shutting down"},
}


class _Question(APIRoute):
    """A route whose body the service reads, away from the event loop if it is large.

    The endpoint is a description: its parameter says what is asked.
    """

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:
        """What answers a request."""
        (asked, *_) = typing.get_type_hints(self.endpoint).values()

        async def handle(request: Request) -> Response:
            kind = request.headers.get("content-type", "application/json")
            if kind.partition(";")[0].strip().lower() != "application/json":
                # A form of another site would arrive as text/plain, without being asked for.
                told = f"content-type {shown(kind)}: expected application/json"
                raise HTTPException(415, told)
            answer = await request.app.state.service.ask(asked, await request.body())
            return Response(answer, media_type="application/json")

        return handle


def _each_once(request: Request) -> None:
    """Refuse a parameter that comes twice: the last would silently win."""
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if names.count(name) > 1:
            raise HTTPException(422, f"{shown(name)} is given twice: give it once")


def make_app(
    model: TrainedModel | Callable[[], TrainedModel],
    limits: Limits | None = None,
    *,
    allowed_hosts: Collection[str] | None = None,
    reload_token: str = "",
    say: Callable[[str], None] = lambda line: None,
    when_settled: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application; it loads and warms up after its start, and answers what waits at its end.

    Args:
      model: a model, or how to load it. `app.state.service` loads it again on demand.
      limits: of requests.
      allowed_hosts: names under which it is served; None = any.
      reload_token: who knows it may POST /reload; "" = programs on this machine may.
      say, when_settled: as of `Service`.
    """
    load = (lambda: model) if isinstance(model, TrainedModel) else model
    service = Service(load, limits or Limits(), say=say, when_settled=when_settled)
    if isinstance(model, TrainedModel):
        service.status = "warming up"

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="gr_jax",
        version=gr_jax.__version__,
        summary="What would this user take next?",
        lifespan=lifespan,
        docs_url=None,  # its script would come from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    _questions(app, service)
    _pages(app, service)
    _reload(app, service, reload_token)
    _errors_as_json(app)

    # The last added is the outermost.
    app.add_middleware(BodyLimit, limits=service.limits, check_room=service.check_room)
    app.add_middleware(guard.Guard, allowed=allowed_hosts)
    paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
    app.add_middleware(Measured, metrics=service.metrics, paths=paths)
    return app


def _questions(app: FastAPI, service: Service) -> None:
    """/recommend and /score."""

    async def recommend(question: wire.RecommendIn) -> None:
        """The k best items for a history, or for a user of the log."""

    async def score(question: wire.ScoreIn) -> None:
        """Scores of candidates, in their order."""

    for endpoint in (recommend, score):
        app.router.add_api_route(
            f"/{endpoint.__name__}",
            endpoint,
            methods=["POST"],
            response_model=wire.AnswerOut,
            responses=ERRORS,
            route_class_override=_Question,
        )
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        """The interface, with examples that the model can answer once there is one."""
        document = plain()
        if service.served:
            for path, examples in service.served.examples.items():
                body = document["paths"][f"/{path}"]["post"]["requestBody"]
                body["content"]["application/json"]["examples"] = examples
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _pages(app: FastAPI, service: Service) -> None:
    """What is read and not computed."""

    @app.get(
        "/items",
        response_model=wire.ItemsOut,
        responses={422: ERRORS[422], 503: ERRORS[503]},
        dependencies=[Depends(_each_once)],
    )
    def items(
        query: Annotated[
            str, Query(max_length=200, description="words of the title, or a raw id")
        ] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:
        """Items by title, the most frequent first."""
        return JSONResponse({"items": service.ready().find(query, limit)})

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
        return _page(PAGE.read_text(encoding="utf-8"))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _page(reference.page(app.openapi()))


def _reload(app: FastAPI, service: Service, token: str) -> None:
    """/reload."""

    @app.post(
        "/reload",
        response_model=wire.ReloadOut,
        responses={403: {"model": wire.ErrorOut}, 500: {"model": wire.ErrorOut}, 503: ERRORS[503]},
    )
    async def reload(request: Request) -> Response:
        """Load the workdir again and exchange the model, without a pause; answers when it is done.

        From this machine, or with `Authorization: Bearer TOKEN` where the server has a token.
        """
        client = request.client.host if request.client else ""
        if refusal := guard.refusal_of_reload(request.headers, client, token):
            raise HTTPException(403, refusal)
        service.ready()
        return JSONResponse(await service.reload())


def _page(text: str) -> Response:
    return HTMLResponse(text, headers={"content-security-policy": guard.content_policy(text)})


def _errors_as_json(app: FastAPI) -> None:
    """Every error is {"error": one line}."""

    def told(error: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
        text = error.encode("ascii", "backslashreplace").decode()
        return JSONResponse({"error": shortened(text, 1000)}, status, headers=headers)

    def first_of(errors: Sequence[Any]) -> Response:
        first = errors[0]
        # Not `input`: what was sent may be large, or not be text at all.
        place = shortened(".".join(str(part) for part in first["loc"] if part != "query"))
        return told(f"{place or 'body'}: {first['msg'].removeprefix('Value error, ')}", 422)

    @app.exception_handler(ValidationError)
    async def no_question(request: Request, error: ValidationError) -> Response:
        return first_of(error.errors(include_input=False, include_url=False))

    @app.exception_handler(RequestValidationError)
    async def no_parameter(request: Request, error: RequestValidationError) -> Response:
        return first_of(error.errors())

    @app.exception_handler(NotJson)
    async def no_json(request: Request, error: NotJson) -> Response:
        return told(f"the body is not JSON: {error}", 400)

    @app.exception_handler(RequestError)
    async def cannot_be_answered(request: Request, error: RequestError) -> Response:
        return told(str(error), 422)

    @app.exception_handler(NoUser)
    async def no_user(request: Request, error: NoUser) -> Response:
        return told(str(error), 404)

    @app.exception_handler(NotReloaded)
    async def not_reloaded(request: Request, error: NotReloaded) -> Response:
        return told(str(error), 500)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        return told(str(error.detail), error.status_code, error.headers)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        return told(str(error), 503, {"retry-after": str(error.retry_after)})

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "internal error; see the server's log"}, 500)
