"""CSV as it comes: a header and lines, each of which may be broken without harm to the others."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from citylab.errors import ConfigurationError

NOTHING = frozenset({"", "na", "n/a", "nan", "null", "none", "-"})
_NUMBER = re.compile(r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)


class Line(NamedTuple):
    """A line that could be split as the header is. `number` counts from 1, the header's."""

    number: int
    cells: Sequence[str]


class BrokenLine(NamedTuple):
    """A line that could not, and why."""

    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Table:
    """A header, whose names are stripped, and the text below it. `note` says what was unusual in the bytes."""

    name: str
    header: Sequence[str]
    delimiter: str
    body: Sequence[tuple[int, str]]
    note: str | None

    def column(self, name: str) -> int | None:
        """Where a column stands, whatever the case of its name."""
        wanted = name.casefold()
        return next((i for i, title in enumerate(self.header) if title.casefold() == wanted), None)

    def columns(self, names: Sequence[str], what: str) -> list[int]:
        """Where each of several columns stands. Raises `ConfigurationError` that names those that are missing."""
        found = [self.column(name) for name in names]
        missing = [name for name, place in zip(names, found, strict=True) if place is None]
        if missing:
            listed = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            plural = "columns" if len(missing) > 1 else "column"
            raise ConfigurationError(f"{self.name} is not {what}: it has no {plural} {listed}")
        return [place for place in found if place is not None]

    def lines(self) -> Iterator[Line | BrokenLine]:
        """Each line that is not blank. A line is split on its own: an open quote swallows no other."""
        for number, text in self.body:
            cells = _split(text, self.delimiter)
            if isinstance(cells, str):
                yield BrokenLine(number, cells)
            elif len(cells) != len(self.header):
                yield BrokenLine(number, f"{len(cells)} cells, the header has {len(self.header)}")
            else:
                yield Line(number, cells)


def read_table(content: bytes, name: str) -> Table:
    """Read bytes as CSV with a header. Raises `ConfigurationError` when there is no table in them."""
    text, note = _decode(content, name)
    lines = [(n, line) for n, line in enumerate(re.split(r"\r\n|\r|\n", text), 1) if line.strip()]
    if not lines:
        raise ConfigurationError(f"{name} is empty")
    title = lines[0][1]
    delimiter = max(",;\t", key=title.count)
    header = _split(title, delimiter)
    if isinstance(header, str):
        raise ConfigurationError(f"{name}: its header cannot be read: {header}")
    if len(lines) == 1:
        raise ConfigurationError(f"{name} has a header and no rows: there is nothing to replay")
    return Table(name, [cell.strip() for cell in header], delimiter, lines[1:], note)


def number(cell: str) -> float | None:
    """A cell's number, with a decimal point or comma; None where the file says that there is none.

    Raises ValueError on anything else, NaN and infinity included.
    """
    text = cell.strip()
    if text.casefold() in NOTHING:
        return None
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{_short(text)} is no number")
    value = float(text.replace(",", "."))
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{_short(text)} is too large")
    return value


def _decode(content: bytes, name: str) -> tuple[str, str | None]:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigurationError(f"{name} is UTF-16: save it as UTF-8")
    if b"\0" in content:
        raise ConfigurationError(f"{name} is no text file")
    try:
        return content.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return content.decode("latin-1"), f"not UTF-8 (first in line {line}): the file was read as Latin-1"


def _split(text: str, delimiter: str) -> list[str] | str:
    """A line's cells, or why it has none."""
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return f"cannot be split into cells ({error})"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
