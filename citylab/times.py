"""ISO 8601 in and out, as whole microseconds since the epoch (`Micros`)."""

import re
import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

from citylab.model import DAY, HOUR, MINUTE, SECOND, Micros

_INSTANT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?\s?(?:([Zz])|([+\- ])(\d\d):?([0-5]\d)?)",
    re.ASCII,
)
_NUMBER = r"(\d+(?:[.,]\d+)?)"
_DURATION = re.compile(
    rf"P(?:{_NUMBER}W|(?:{_NUMBER}D)?(?:T(?:{_NUMBER}H)?(?:{_NUMBER}M)?(?:{_NUMBER}S)?)?)",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> Micros:
    """The wall clock. Services take it as an argument named `clock`; this is its default."""
    return time.time_ns() // 1_000


def parse_instant(text: str) -> Micros:
    """Read an ISO 8601 date and time with an offset; seconds may be absent, fractions beyond µs are cut.

    A space stands for `T`, and for the `+` that an unencoded URL loses. Raises ValueError with what was wrong.
    """
    match = _INSTANT.fullmatch(text)
    if not match:
        raise ValueError(
            f"{text!r} is no ISO 8601 date and time with an offset, such as 2026-05-01T07:00:00Z"
        )
    year, month, day, hour, minute, second, fraction, zulu, sign, hours, minutes = match.groups()
    micro = int((fraction or "0").ljust(6, "0")[:6])
    try:
        zone: timezone = UTC
        if not zulu:
            offset = timedelta(hours=int(hours), minutes=int(minutes or 0))
            zone = timezone(-offset if sign == "-" else offset)
        moment = datetime(
            int(year), int(month), int(day), int(hour), int(minute), int(second or 0), tzinfo=zone
        )
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    return (moment - _EPOCH) // timedelta(microseconds=1) + micro


def format_instant(micros: Micros) -> str:
    """Write UTC with `Z`; no fraction when it is zero, else as many digits as it needs."""
    seconds, fraction = divmod(micros, SECOND)
    text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    if text.index("-") < 4:  # glibc writes years before 1000 without their zeros
        text = text.rjust(19, "0")
    return f"{text}.{fraction:06d}".rstrip("0") + "Z" if fraction else f"{text}Z"


def parse_duration(text: str) -> Micros:
    """Read an ISO 8601 duration of weeks, days, hours, minutes and seconds. Months and years have no fixed length.

    Raises ValueError.
    """
    match = _DURATION.fullmatch(text)
    if not match or not any(match.groups()):
        raise ValueError(f"{text!r} is no ISO 8601 duration of fixed length, such as PT1H or PT10S")
    weeks, days, hours, minutes, seconds = (Decimal((n or "0").replace(",", ".")) for n in match.groups())
    length = round(weeks * 7 * DAY + days * DAY + hours * HOUR + minutes * MINUTE + seconds * SECOND)
    if length > LAST_INSTANT - FIRST_INSTANT:
        raise ValueError(f"{text!r} is longer than all time that can be written, the years 1 to 9999")
    return length


FIRST_INSTANT: Micros = parse_instant("0001-01-01T00:00:00Z")
LAST_INSTANT: Micros = parse_instant("9999-12-31T23:59:59.999999Z")


def parse_time(text: str) -> tuple[Micros, Micros | None]:
    """Read an instant, or an interval `start/end` in which one side may be a duration; the end of an instant is None.

    Raises ValueError.
    """
    first, slash, second = text.partition("/")
    if first.startswith("P") and slash:
        end = parse_instant(second)
        start = end - parse_duration(first)
    else:
        start = parse_instant(first)
        if not slash:
            return _in_range(start, text), None
        end = start + parse_duration(second) if second.startswith("P") else parse_instant(second)
    if end < start:
        raise ValueError(f"{text!r} ends before it begins")
    return _in_range(start, text), _in_range(end, text)


def _in_range(micros: Micros, text: str) -> Micros:
    if not FIRST_INSTANT <= micros <= LAST_INSTANT:
        raise ValueError(f"{text!r} is not within the years 1 to 9999 of UTC")
    return micros


def format_time(start: Micros, end: Micros | None) -> str:
    """Write an instant, or an interval `start/end`."""
    return format_instant(start) if end is None else f"{format_instant(start)}/{format_instant(end)}"
