"""A request's query string read into a `Query`."""

from dataclasses import replace
from urllib.parse import quote, unquote_to_bytes

from api.sensorthings.errors import Fault, RequestError
from api.sensorthings.lexer import Token
from api.sensorthings.parser import ODATA_OPTIONS, Options, Parser
from api.sensorthings.syntax import Query, ResultFormat

LONGEST = 32_768  # bytes of a query string
_UNSUPPORTED = ODATA_OPTIONS
_SAFE = "()$,;/:=@*'!~"  # stays readable in a link
_NAMES = {
    name.lower(): name
    for name in (
        "$filter",
        "$orderby",
        "$select",
        "$expand",
        "$top",
        "$skip",
        "$count",
        "$skiptoken",
        "$resultFormat",
    )
}
_FORMATS = {f.lower(): f for f in ResultFormat}


def read_query(text: str) -> Query:
    """Read a query string as it came, percent-encoded. A `+` is a space; names and values may be encoded in full.

    The names count in any case, as OData 4.01 wants it: clients write `$orderBy`.

    Raises `RequestError`: 400 for what is malformed or unknown, 501 for what OData knows and this service does not.
    """
    if len(text) > LONGEST:
        raise RequestError(400, f"the query string is longer than {LONGEST} bytes")
    options = Options()
    skiptoken = None
    result_format = None
    for part in text.split("&"):
        if not part:
            continue
        name, equals, value = (_decoded(piece) for piece in part.partition("="))
        if name.lower() in _UNSUPPORTED:
            raise RequestError(501, f"the option {name} is not supported")
        if name.lower() not in _NAMES:
            meant = f": is ${name} meant?" if f"${name.lower()}" in _NAMES else ""
            raise RequestError(400, f"there is no option {name!r}{meant}")
        name = _NAMES[name.lower()]
        if not equals:
            raise RequestError(400, f"the option {name} has no value")
        if name == "$skiptoken":
            skiptoken = value
            continue
        if name == "$resultFormat":
            result_format = _FORMATS.get(value.lower())
            if result_format is None:
                raise RequestError(400, f"$resultFormat: {value!r} is none of {', '.join(ResultFormat)}")
            continue
        try:
            parser = Parser(value)
            options.read(Token("name", name, 0), parser)
            parser.end()
        except Fault as fault:
            raise fault.in_text(name, value) from None
        except RecursionError:
            raise RequestError(400, f"{name} is nested too deeply") from None
        options.texts[name] = value
    query = options.query(skiptoken)
    return replace(query, result_format=result_format) if result_format else query


def write_query(options: list[tuple[str, str]]) -> str:
    """The options as a query string for a link."""
    return "&".join(f"{name}={quote(value, safe=_SAFE)}" for name, value in options)


def _decoded(piece: str) -> str:
    try:
        return unquote_to_bytes(piece.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise RequestError(400, "the query string is not UTF-8 once its percent signs are decoded") from None
