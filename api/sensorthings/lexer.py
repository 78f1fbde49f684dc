"""Query options cut into tokens."""

import re
from collections.abc import Callable
from typing import NamedTuple

from api.sensorthings.errors import Fault
from api.sensorthings.geometry import read_wkt
from api.sensorthings.syntax import Literal, LiteralKind, LiteralValue
from citylab.model import Micros
from citylab.times import parse_duration, parse_time

_ZONE = r"(?:[Zz]|[+\- ]\d\d:?(?:\d\d)?)?"  # an unencoded + arrives as a space
_INSTANT = rf"\d{{4}}-\d\d-\d\d[Tt]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?{_ZONE}"
_DURATION = r"P[0-9.WDTHMSY]+"
_NAME = r"[^\W\d]\w*"
_TOKEN = re.compile(
    rf"""
    (?P<space>\s+)
  | (?P<time>{_INSTANT}(?:/(?:{_INSTANT}|{_DURATION}))?|{_DURATION}/{_INSTANT})
  | (?P<date>\d{{4}}-\d\d-\d\d(?![\w:]))
  | (?P<clock>\d\d:\d\d(?::\d\d(?:\.\d{{1,6}})?)?(?![\w:]))
  | (?P<number>-?\d+(?:\.\d+)?(?:[eE][+\- ]?\d+)?(?![\w.]))
  | (?P<duration>duration'[^']*')
  | (?P<geometry>geo(?:graphy|metry)'[^']*')
  | (?P<string>'(?:[^']|'')*')
  | (?P<name>[@$]?{_NAME}(?:\.{_NAME})*)
  | (?P<mark>[()\[\],;:/=*])
    """,
    re.VERBOSE,
)
_MEMBER = re.compile(r"[^\s/()\[\],;'=]+")  # after a slash: keys of JSON may hold - . : and more


class Token(NamedTuple):
    """A piece of the text; kind is the name of its group above, or `end`."""

    kind: str
    text: str
    at: int


def tokens(text: str) -> list[Token]:
    """Cut the text; spaces are left out. Raises `Fault`."""
    found: list[Token] = []
    at = 0
    while at < len(text):
        after_slash = (
            bool(found) and found[-1].text == "/" and found[-1].kind == "mark" and found[-1].at == at - 1
        )
        match = _MEMBER.match(text, at) if after_slash else _TOKEN.match(text, at)
        if match is None:
            raise Fault(
                at, "a string without its closing quote" if text[at] == "'" else "a character out of place"
            )
        kind = "name" if after_slash else str(match.lastgroup)
        if kind != "space":
            found.append(Token(kind, match.group(), at))
        at = match.end()
    found.append(Token("end", "", len(text)))
    return found


def literal(token: Token) -> Literal | None:
    """The literal that a token is, if it is one. Raises `Fault` for one that cannot be, such as 30 February."""
    if token.kind == "name":
        return Literal(token.at, *_WORDS[token.text]) if token.text in _WORDS else None
    if token.kind not in _READERS:
        return None
    kind, reader = _READERS[token.kind]
    try:
        return Literal(token.at, kind, reader(token.text))
    except ValueError as error:
        raise Fault(token.at, str(error)) from None


def _date(text: str) -> str:
    parse_time(f"{text}T00:00:00Z")
    return text


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a string with the character NUL, which no stored value holds")
    return text


def _well_known(text: str) -> str:
    text = _without_nul(text[text.index("'") + 1 : -1])
    read_wkt(text)
    return text


def _duration(text: str) -> Micros:
    return -parse_duration(text[1:]) if text.startswith("-") else parse_duration(text)


def _clock(text: str) -> str:
    parse_time(f"2000-01-01T{text}Z")
    if text.count(":") == 1:
        return f"{text}:00"
    return text.rstrip("0").rstrip(".") if "." in text else text


_WORDS: dict[str, tuple[LiteralKind, LiteralValue]] = {
    "null": (LiteralKind.NULL, None),
    "true": (LiteralKind.BOOLEAN, True),
    "false": (LiteralKind.BOOLEAN, False),
}
_READERS: dict[str, tuple[LiteralKind, Callable[[str], LiteralValue]]] = {
    "string": (LiteralKind.STRING, lambda text: _without_nul(text[1:-1].replace("''", "'"))),
    "number": (LiteralKind.NUMBER, lambda text: text.replace(" ", "+")),
    "time": (LiteralKind.TIME, parse_time),
    "date": (LiteralKind.DATE, _date),
    "clock": (LiteralKind.TIME_OF_DAY, _clock),
    "duration": (LiteralKind.DURATION, lambda text: _duration(text[len("duration'") : -1])),
    "geometry": (LiteralKind.GEOMETRY, _well_known),
}
