"""The type lattice: what a piece of an expression is in SQL, and what it gives when it is taken for another type.

A mismatch is never an error: taken for a type it does not have, a value is null, and a comparison with null holds for
no row. Everything here is text of SQL; what a request brought is behind a placeholder by then.
"""

from collections.abc import Callable
from dataclasses import dataclass

from api.sensorthings.geometry import Column, Measure
from citylab.entity_json import iso_text, number_text


class Parameters:
    """The values of a statement, each behind a named placeholder."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self.measures: set[Measure] = set()

    def add(self, value: str | list[str], cast: str) -> str:
        """Keep a value; return the SQL that stands for it. Sent as text, so that its SQL type is always the same."""
        name = f"p{len(self.values)}"
        self.values[name] = value
        return f"%({name})s::{cast}"

    def column(self, column: Column, cast: str) -> str:
        """Keep an array that is made when the statement runs, once however often it is needed."""
        for name, value in self.values.items():
            if value == column:
                return f"%({name})s::{cast}"
        name = f"p{len(self.values)}"
        self.values[name] = column
        return f"%({name})s::{cast}"


@dataclass(frozen=True, slots=True)
class Value:
    """A value, and what it is when taken for a type: None where it is never of that type. nullable: if it may be null."""

    nullable: bool

    def number(self) -> str | None:
        """SQL of a number."""
        return None

    def text(self) -> str | None:
        """SQL of a text."""
        return None

    def boolean(self) -> str | None:
        """SQL of a boolean."""
        return None

    def time(self) -> "Time | None":
        """The time that it is, or that its text holds."""
        return None

    def json(self) -> str | None:
        """SQL of a jsonb."""
        return None

    def is_null(self) -> str:
        """SQL of whether it is null."""
        return "TRUE"


@dataclass(frozen=True, slots=True)
class Null(Value):
    """The literal null."""

    nullable: bool = True


@dataclass(frozen=True, slots=True)
class Scalar(Value):
    """A value that one SQL expression gives."""

    sql: str = ""

    def is_null(self) -> str:
        return f"({self.sql}) IS NULL"


@dataclass(frozen=True, slots=True)
class Boolean(Scalar):
    """boolean."""

    def boolean(self) -> str | None:
        return self.sql

    def text(self) -> str | None:
        return f"({self.sql})::text"

    def json(self) -> str | None:
        return f"to_jsonb({self.sql})"


@dataclass(frozen=True, slots=True)
class Number(Scalar):
    """int8, float8 or numeric, as `cast` says."""

    cast: str = "float8"

    def number(self) -> str | None:
        return self.sql

    def text(self) -> str | None:
        return number_text(self.sql) if self.cast == "float8" else f"({self.sql})::text"

    def json(self) -> str | None:
        return f"to_jsonb({self.sql})"


@dataclass(frozen=True, slots=True)
class Text(Scalar):
    """text. literal: the string itself, where the request gave it; parse: reads it as a time if it is one."""

    literal: bool = False
    parse: "Callable[[], Time | None] | None" = None

    def text(self) -> str | None:
        return self.sql

    def time(self) -> "Time | None":
        if self.literal:
            return self.parse() if self.parse else None
        return time_of_text(self.sql)

    def json(self) -> str | None:
        return f"to_jsonb({self.sql})"


@dataclass(frozen=True, slots=True)
class Duration(Scalar):
    """interval."""


@dataclass(frozen=True, slots=True)
class Geometry(Value):
    """A geometry that was given, as well-known text: only geo functions take it for anything."""

    wkt: str = ""


@dataclass(frozen=True, slots=True)
class Time(Value):
    """An instant, or an interval [start, end): timestamptz.

    end: None for what is always an instant; always_interval: for what never is; otherwise a null end tells.
    """

    start: str = ""
    end: str | None = None
    always_interval: bool = False

    def time(self) -> "Time | None":
        return self

    def text(self) -> str | None:
        if self.end is None:
            return iso_text(self.start)
        tail = f"'/' || {iso_text(self.end)}"
        return f"({iso_text(self.start)} || coalesce({tail}, ''))"

    def is_null(self) -> str:
        return f"{self.start} IS NULL"


@dataclass(frozen=True, slots=True)
class Json(Scalar):
    """jsonb: what it is, each row decides."""

    def number(self) -> str | None:
        return f"CASE WHEN jsonb_typeof({self.sql}) = 'number' THEN ({self.sql})::numeric END"

    def text(self) -> str | None:
        return f"({self.sql} #>> '{{}}') COLLATE \"C\""

    def boolean(self) -> str | None:
        return f"CASE WHEN jsonb_typeof({self.sql}) = 'boolean' THEN ({self.sql})::boolean END"

    def time(self) -> Time | None:
        return time_of_text(f"({self.sql} #>> '{{}}')")

    def json(self) -> str | None:
        return self.sql

    def is_null(self) -> str:
        return f"coalesce({self.sql}, 'null') = 'null'"


@dataclass(frozen=True, slots=True)
class Result(Value):
    """An Observation's result: every number as float8 in one column, and jsonb where that would not give it back."""

    of_number: str = ""
    of_json: str = ""

    def number(self) -> str | None:
        return self.of_number

    def text(self) -> str | None:
        return f"coalesce({self.of_json} #>> '{{}}', {number_text(self.of_number)}) COLLATE \"C\""

    def boolean(self) -> str | None:
        return f"CASE WHEN jsonb_typeof({self.of_json}) = 'boolean' THEN ({self.of_json})::boolean END"

    def time(self) -> Time | None:
        return time_of_text(f"({self.of_json} #>> '{{}}')")

    def json(self) -> str | None:
        return f"coalesce({self.of_json}, to_jsonb({self.of_number}))"

    def is_null(self) -> str:
        return f"({self.of_number} IS NULL AND coalesce({self.of_json}, 'null') = 'null')"


DYNAMIC = (Json, Result)


def time_of_text(sql: str) -> Time:
    """The instant that a text holds, null where it holds none."""
    return Time(True, f"CASE WHEN pg_input_is_valid({sql}, 'timestamptz') THEN ({sql})::timestamptz END")
