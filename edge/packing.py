"""Readings become SenML packs (RFC 8428), numbered so that a bridge finds the numbers without decoding the pack."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import cbor2
import msgspec

from citylab.model import DAY, SECOND, Micros, Quality, Reading
from citylab.senml import ABSOLUTE, NAME

Form: TypeAlias = Literal["json", "cbor"]
FAR_APART = 10 * DAY
_SEPARATORS = "/:._-"
_QUALITY: dict[Quality, str] = {
    quality: quality.name.lower() for quality in Quality if quality is not Quality.NONE
}
# RFC 8428 §6, Table 4: labels in CBOR; `epoch`, `seq` and `quality` keep their names.
_LABELS: dict[str, int | str] = {
    "bn": -2,
    "bt": -3,
    "bu": -4,
    "n": 0,
    "u": 1,
    "v": 2,
    "vs": 3,
    "vb": 4,
    "t": 6,
}


class _Record(msgspec.Struct, omit_defaults=True, gc=False):
    """A record in the order in which it is written."""

    epoch: int | None = None
    seq: int | None = None
    bn: str | None = None
    bt: float | None = None
    bu: str | None = None
    n: str | None = None
    u: str | None = None
    v: float | None = None
    vs: str | None = None
    vb: bool | None = None
    t: float | None = None
    quality: str | None = None


_encode_json = msgspec.json.Encoder().encode


def why_not(reading: Reading) -> str | None:
    """Why a reading cannot be written as a SenML record, or None. One such would have its whole pack refused."""
    if not NAME.fullmatch(reading.name):
        return (
            "the name must begin with an ASCII letter or digit and go on with those and - : . / _ (RFC 8428)"
        )
    if reading.time < ABSOLUTE * SECOND:
        return "SenML cannot write times before July 1978"
    return None


def encode(readings: Sequence[Reading], *, epoch: int, seq: int, form: Form = "json") -> bytes:
    """Write one pack of at least one reading. NaN and infinity, which JSON has no words for, make it a CBOR pack."""
    records = _records(readings)
    records[0].epoch, records[0].seq = epoch, seq
    if form == "json" and all(record.v is None or math.isfinite(record.v) for record in records):
        return _encode_json(records)
    return cbor2.dumps([_fields(record) for record in records])


def encode_all(
    readings: Sequence[Reading],
    *,
    epoch: int,
    seq: int,
    form: Form,
    most_records: int,
    most_bytes: int,
    refused: Callable[[Reading, str], None],
) -> list[bytes]:
    """Write packs numbered from `seq` on, each within the limits. A reading too large for one goes to `refused`."""
    packs: list[bytes] = []

    def write(some: Sequence[Reading]) -> None:
        pack = encode(some, epoch=epoch, seq=seq + len(packs), form=form)
        if len(pack) <= most_bytes:
            packs.append(pack)
        elif len(some) == 1:
            refused(some[0], f"its value is larger than a pack may be ({most_bytes} bytes)")
        else:
            write(some[: len(some) // 2])
            write(some[len(some) // 2 :])

    for at in range(0, len(readings), most_records):
        write(readings[at : at + most_records])
    return packs


def _records(readings: Sequence[Reading]) -> list[_Record]:
    names = {reading.name for reading in readings}
    units = {reading.unit for reading in readings}
    times = [reading.time for reading in readings]
    base_name = _base_name(names)
    base_unit = next(iter(units)) if len(units) == 1 else None
    base = _base_time(min(times), max(times))
    cut = len(base_name)
    records = []
    for reading, time in zip(readings, times, strict=True):
        record = _Record(
            n=reading.name[cut:] or None,
            u=None if base_unit else reading.unit,
            t=_seconds(time - base) if time != base else None,
            quality=_QUALITY.get(reading.quality),
        )
        value = reading.value
        if isinstance(value, bool):
            record.vb = value
        elif isinstance(value, str):
            record.vs = value
        else:
            record.v = value
        records.append(record)
    first = records[0]
    first.bn, first.bt, first.bu = base_name or None, _seconds(base) if base else None, base_unit
    return records


def _base_time(least: Micros, greatest: Micros) -> Micros:
    """A base from which base + relative time, added as floats by the reader, rounds to the same microsecond."""
    if least == greatest:
        return least
    if greatest - least > FAR_APART:
        return 0  # both parts would be rounded; the absolute times are rounded once
    return least - least % SECOND  # whole seconds, which a float holds exactly


def _seconds(micros: int) -> float:
    return micros // SECOND if micros % SECOND == 0 else micros / SECOND


def _base_name(names: set[str]) -> str:
    """What all names begin with, up to a separator; a single name whole."""
    if len(names) == 1:
        return next(iter(names))
    least, greatest = min(names), max(names)  # the others lie between these two
    alike = 0
    while alike < len(least) and least[alike] == greatest[alike]:
        alike += 1
    return least[: max(least.rfind(separator, 0, alike) for separator in _SEPARATORS) + 1]


def _fields(record: _Record) -> dict[int | str, Any]:
    fields = ((name, getattr(record, name)) for name in _Record.__struct_fields__)
    return {_LABELS.get(name, name): value for name, value in fields if value is not None}
