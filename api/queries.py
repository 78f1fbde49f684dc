"""What the queries of the faces beside SensorThings have in common: instants, widths, unknown parameters refused."""

import difflib
from typing import Annotated, Any

import msgspec
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from api.sensorthings.errors import RequestError
from citylab.ledger import parse_width
from citylab.times import parse_instant

LARGEST_ID = 2**63 - 1
_INSTANT = {"type": "string", "format": "date-time", "examples": ["2026-05-01T07:00:00Z"]}
_WIDTH = {"type": "string", "examples": ["minute", "hour", "day", "PT15M"]}

Instant = Annotated[int, BeforeValidator(parse_instant), WithJsonSchema(_INSTANT)]
Width = Annotated[int, BeforeValidator(parse_width), WithJsonSchema(_WIDTH)]
Id = Annotated[int, Field(ge=1, le=LARGEST_ID)]


class Asked(BaseModel):
    """A query's parameters; one that is not there is a mistake, and is said."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest(cls, given: dict[str, Any]) -> dict[str, Any]:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for name in given:
            if name not in known:
                (near,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                raise ValueError(f"there is no parameter {name!r}; did you mean {near!r}?")
        return given


class TimeRange(Asked):
    """`from` and `to`: from an instant on, and before one."""

    start: Annotated[Instant | None, Field(alias="from", description="From this instant on.")] = None
    end: Annotated[Instant | None, Field(alias="to", description="Before this instant.")] = None

    def between(self, now: int, usual: int) -> tuple[int, int]:
        """Both ends; by default now, and so long (µs) before. Raises `RequestError`."""
        end = now if self.end is None else self.end
        start = end - usual if self.start is None else self.start
        if start >= end:
            raise RequestError(400, "from must be before to")
        return start, end


def answer(document: Any, status: int = 200) -> Response:
    """The document as JSON."""
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def documented(document: str, about: str, *errors: int, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses of a route: a document of `api.openapi`, or one of these errors."""
    found: dict[int | str, dict[str, Any]] = {status: {"description": about, "content": _content(document)}}
    return found | {error: {"description": _ERRORS[error], "content": _content("Error")} for error in errors}


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


_ERRORS = {
    400: "A parameter is wrong; the message says which.",
    404: "There is no such thing.",
    503: "The store does not answer now.",
}
