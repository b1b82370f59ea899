"""The JSON of the server: requests, answers, and the examples of its documentation."""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictInt,
    StrictStr,
    WithJsonSchema,
)

from gr_jax.errors import shortened, shown
from gr_jax.serving.answer import Answer
from gr_jax.serving.model import TrainedModel
from gr_jax.serving.moments import LAST_TIME, Moment, moment

ItemId = Annotated[StrictStr | StrictInt, Field(description="raw id of the log, as text or number")]
_TIME_SCHEMA = [
    {"type": "number", "minimum": 0, "maximum": LAST_TIME, "description": "unix seconds"},
    {"type": "string", "format": "date-time", "description": "without a zone in UTC"},
]
Time = Annotated[Moment, PlainValidator(moment), WithJsonSchema({"anyOf": _TIME_SCHEMA})]


def _at_time(value: object) -> Moment | Literal["now"] | None:
    return value if value is None or value == "now" else moment(value)  # type: ignore[return-value]


AtTime = Annotated[
    Moment | Literal["now"] | None,
    PlainValidator(_at_time),
    WithJsonSchema({"anyOf": [*_TIME_SCHEMA, {"const": "now"}, {"type": "null"}]}),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EventIn(_Strict):
    """An event of a user."""

    item: ItemId
    time: Time
    action: list[StrictStr] | StrictStr = Field(
        [], description="names of the log's actions that happened"
    )


class _Question(_Strict):
    history: list[EventIn] | None = Field(
        None, description="events, in any order; absent: those of `user` in the log"
    )
    user: ItemId | None = Field(None, description="a user of the log whose features hold")
    at_time: AtTime = Field(None, description="the time asked about; absent: the last event's")
    task: StrictStr = Field(
        "", description="ranking: whose prediction is the score; absent: the first task"
    )


class RecommendIn(_Question):
    """A request for the k best items."""

    k: StrictInt = Field(10, ge=1, description="number of items")
    exclude_seen: StrictBool | None = Field(
        None,
        description="leave out the items of the history; absent: unless the run was evaluated so",
    )
    allow: list[ItemId] | None = Field(None, description="items that alone may come")
    deny: list[ItemId] = Field([], description="items that may not come")


class ScoreIn(_Question):
    """A request for scores of candidates."""

    candidates: list[ItemId] = Field(description="items, each of the catalogue")


class ItemOut(BaseModel):
    """An item of an answer."""

    item: str
    title: str | None
    score: float
    tasks: dict[str, float] | None = Field(
        None, description="ranking: the prediction for each task"
    )


class AnswerOut(BaseModel):
    """Items, best first; of /score in the order of the candidates."""

    items: list[ItemOut]
    source: Literal["model", "popularity"] = Field(
        description="popularity: no item of the history is known"
    )
    skipped: int = Field(description="events of the history whose item is not known")
    version: str = Field(description="of the model that answered; another after a reload")


class NamedOut(BaseModel):
    """An item of the catalogue."""

    item: str
    title: str | None


class ItemsOut(BaseModel):
    """Items found, the most frequent first."""

    items: list[NamedOut]


class ReloadOut(BaseModel):
    """The model that answers from now on, and the one that did before."""

    version: str
    before: str


class HealthOut(BaseModel):
    """The state of the server, and the model that it serves once there is one."""

    status: Literal["loading", "warming up", "ready", "failed", "shutting down"]
    version: str | None = None
    kind: Literal["retrieval", "ranking"] | None = None
    items: int | None = None
    tasks: list[str] | None = None
    actions: list[str] | None = Field(
        None, description="actions that an event can have, besides those that all events have"
    )


class ErrorOut(BaseModel):
    """An error, in one line."""

    error: str


Question = RecommendIn | ScoreIn


_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class NotJson(ValueError):
    """A body that is not JSON."""


def read(kind: type[Question], body: bytes) -> Question:
    """A question as it is sent.

    Raises:
      NotJson: it is not, or a member comes twice: the last would silently win.
      ValidationError: it is not a question.
    """
    try:
        values = json.loads(body.decode(), object_pairs_hook=_once)
    except RecursionError:
        raise NotJson("nested too deep") from None
    except ValueError as error:
        raise NotJson(shortened(str(error))) from None
    return kind.model_validate(values)


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the member {shown(twice)} comes twice")
    return found


def answer_json(answer: Answer, version: str) -> bytes:
    """The JSON of an answer of the model with this version, as `AnswerOut` describes it."""
    items = [{"item": i.item, "title": i.title, "score": i.score, "tasks": i.tasks} for i in answer]
    # In parts: 10,000 items at once would keep the other threads waiting for the interpreter.
    parts = [_json(items[start : start + 256])[1:-1] for start in range(0, len(items), 256)]
    rest = _json({"source": answer.source, "skipped": answer.skipped, "version": version})
    return f'{{"items":[{",".join(parts)}],{rest[1:]}'.encode()


def examples(model: TrainedModel) -> dict[str, dict[str, Any]]:
    """Requests for /recommend and /score that this model can answer, on the most frequent items."""
    popular = [item.item for item in model.recommend([], k=3)]
    last = int(model.dataset.meta["time_max"])
    events: list[dict[str, Any]] = [
        {"item": item, "time": last - 60 * i} for i, item in enumerate(popular[:2])
    ]
    if model.dataset.catalogue.actions:
        events[0]["action"] = [model.dataset.catalogue.actions[-1]]
    user = model.dataset.catalogue.users["raw"][0]
    return {
        "recommend": {
            "history": {"summary": "a history", "value": {"history": events, "k": 5}},
            "user": {"summary": "a user of the log", "value": {"user": user, "k": 5}},
            "now": {"summary": "at present, some items left out", "value": _now(events, popular)},
            "nobody": {
                "summary": "without a history: what is popular",
                "value": {"history": [], "k": 5},
            },
        },
        "score": {
            "history": {
                "summary": "candidates",
                "value": {"history": events, "candidates": popular},
            },
            "user": {
                "summary": "for a user of the log",
                "value": {"user": user, "candidates": popular},
            },
        },
    }


def _now(events: list, popular: list[str]) -> dict[str, Any]:
    return {"history": events, "k": 5, "at_time": "now", "deny": popular[-1:]}
