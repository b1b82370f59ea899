"""The JSON of the server: requests, answers, and the examples of its documentation."""

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

from gr_jax.serving.model import Answer, TrainedModel
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


class NamedOut(BaseModel):
    """An item of the catalogue."""

    item: str
    title: str | None


class ItemsOut(BaseModel):
    """Items found, the most frequent first."""

    items: list[NamedOut]


class HealthOut(BaseModel):
    """The state of the server, and the model that it serves."""

    status: Literal["ready", "warming up", "failed", "shutting down"]
    kind: Literal["retrieval", "ranking"]
    items: int
    tasks: list[str]
    actions: list[str] = Field(
        description="actions that an event can have, besides those that all events have"
    )


class ErrorOut(BaseModel):
    """An error, in one line."""

    error: str


def answer_out(answer: Answer) -> dict[str, Any]:
    """The JSON of an answer, as `AnswerOut` describes it."""
    items = [{"item": i.item, "title": i.title, "score": i.score, "tasks": i.tasks} for i in answer]
    return {"items": items, "source": answer.source, "skipped": answer.skipped}


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
