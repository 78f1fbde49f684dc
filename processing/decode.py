"""Packs -> columns: every record of every pack becomes a row for the store or a rejection with its reason.

Pure: no connection, no clock. The loop over records is the platform's hottest Python; keep objects out of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from citylab import senml
from citylab.columns import Int64, Observations
from citylab.errors import Rejected
from citylab.model import HOUR, SECOND, Batch, Event, Micros, Quality, Reason, Topic
from citylab.senml import ABSOLUTE, VERSION, Record
from citylab.writes import NewRejection, Receipt, Span, Write
from processing.catalogue import Catalogue, Kind

_QUALITY = {"good": Quality.GOOD, "suspect": Quality.SUSPECT, "bad": Quality.BAD}
_FAR = 1e12  # seconds: further away than any time that is accepted, near enough for whole µs


@dataclass(frozen=True)
class Rules:
    """Limits that a pack must keep. future and earliest in µs."""

    most_records: int = 5_000
    most_bytes: int = 256 * 1024
    future: Micros = HOUR
    earliest: Micros = 946_684_800 * SECOND  # the year 2000


@dataclass
class _Columns:
    """Rows in the making: hot ones in lists, rare properties by row."""

    slot: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    number: list[float | None] = field(default_factory=list)
    record: list[int] = field(default_factory=list)
    relative: list[int] = field(default_factory=list)  # rows whose time is relative to the receipt
    quality: dict[int, Quality] = field(default_factory=dict)
    other: dict[int, tuple[Kind, str]] = field(
        default_factory=dict
    )  # results that are no numbers: kind, JSON text
    total: dict[int, float] = field(default_factory=dict)  # sums beside a value

    def cut(self, length: int) -> None:
        """Take back the rows of a pack that turned out malformed."""
        for column in (self.slot, self.seconds, self.number, self.record):
            del column[length:]
        self.relative = [row for row in self.relative if row < length]
        for rare in (self.quality, self.other, self.total):
            for row in [row for row in rare if row >= length]:
                del rare[row]


def decode(batches: Iterable[Batch], catalogue: Catalogue, rules: Rules) -> Write:
    """Turn the packs of some batches into one write for the store."""
    columns = _Columns()
    receipts: list[Receipt] = []
    rejections: list[NewRejection] = []
    rows_of: list[int] = []
    spans: dict[int, Span] = {}
    for batch in batches:
        before = spans[batch.partition].before if batch.partition in spans else batch.before
        spans[batch.partition] = Span(batch.topic, batch.partition, before, batch.after)
        for event in batch.events:
            begin, rejected = len(columns.slot), len(rejections)
            receipt = len(receipts)
            try:
                records = _read(event, rules)
                counted, untimed = _resolve(records, event.time, receipt, catalogue, columns, rejections)
            except Rejected as error:
                columns.cut(begin)
                del rejections[rejected:]
                rejections.append(
                    NewRejection(receipt, -1, Reason(error.reason), error.detail, payload=event.value)
                )
                counted, untimed = 1, 0
            rows_of.append(len(columns.slot) - begin)
            newest = max(columns.seconds[begin:], default=None)
            receipts.append(_receipt(batch, event, counted, newest, untimed))
    rows, receipt_of, record_of = _check(columns, rows_of, receipts, rejections, catalogue, rules)
    return Write(
        rows=rows,
        receipt=receipt_of,
        record=record_of,
        receipts=receipts,
        rejections=rejections,
        spans=list(spans.values()),
        catalogue_version=catalogue.version,
    )


def _read(event: Event, rules: Rules) -> list[Record]:
    if len(event.value) > rules.most_bytes:
        raise Rejected(
            Reason.MALFORMED, f"a pack holds at most {rules.most_bytes} bytes, this one {len(event.value)}"
        )
    records = senml.decode(event.value)
    if len(records) > rules.most_records:
        raise Rejected(
            Reason.MALFORMED, f"a pack holds at most {rules.most_records} records, this one {len(records)}"
        )
    return records


def _receipt(batch: Batch, event: Event, records: int, newest: float | None, untimed: int) -> Receipt:
    headers = event.headers
    moment = None
    if newest is not None and newest == newest and abs(newest) < _FAR:  # noqa: PLR0124 -- not NaN
        moment = event.time if newest < ABSOLUTE else round(newest * 1e6)
    return Receipt(
        headers["gateway"], int(headers.get("epoch", 0)), int(headers.get("seq", 0)), Topic(batch.topic),
        batch.partition, event.offset, event.time, records, moment, untimed,
    )  # fmt: skip


def _resolve(  # noqa: C901, PLR0912, PLR0915 -- one pass over the records, unrolled for speed
    records: list[Record],
    received_at: Micros,
    receipt: int,
    catalogue: Catalogue,
    columns: _Columns,
    rejections: list[NewRejection],
) -> tuple[int, int]:
    """Fold base fields in (RFC 8428 §4.6) and append rows; return how many records count and how many are untimed."""
    slot_of = catalogue.slots.get
    add_slot, add_seconds = columns.slot.append, columns.seconds.append
    add_number, add_record = columns.number.append, columns.record.append
    base_name, base_time, base_unit = "", 0.0, None
    base_value = base_sum = None
    counted = untimed = 0
    for index, r in enumerate(records):
        if r.bn is not None:
            base_name = r.bn
        if r.bt is not None:
            base_time = r.bt
        if r.bu is not None:
            base_unit = r.bu
        if r.bv is not None:
            base_value = r.bv
        if r.bs is not None:
            base_sum = r.bs
        if r.bver is not None and r.bver != VERSION:
            raise Rejected(Reason.MALFORMED, f"record {index}: SenML version {r.bver} is not {VERSION}")
        name = base_name + r.n if r.n else base_name
        value = r.v
        given = (value is not None) + (r.vs is not None) + (r.vb is not None) + (r.vd is not None)
        if given != 1 or r.s is not None or base_value is not None or base_sum is not None:
            if given > 1:
                raise Rejected(Reason.MALFORMED, f"record {index} has more than one value")
            if given == 0 and r.s is None:
                if r.n is None and r.t is None and r.u is None:
                    continue  # it only sets base fields
                if base_value is None and base_sum is None:
                    raise Rejected(Reason.MALFORMED, f"record {index} has neither a value nor a sum")
            if base_value is not None and (given == 0 or value is not None):
                value = base_value + (value or 0.0)
            if r.s is not None or base_sum is not None:
                total = (r.s or 0.0) + (base_sum or 0.0)
                if value is None and given == 0:
                    value = total
                else:
                    columns.total[len(columns.slot)] = total
        counted += 1
        seconds = base_time if r.t is None else base_time + r.t
        slot = slot_of((name, r.u or base_unit))
        row = len(columns.slot)
        if slot is None:
            senml.check_name(index, name)
            columns.total.pop(row, None)
            rejections.append(
                _unresolved(receipt, index, r, name, base_unit, value, seconds, received_at, catalogue)
            )
            continue
        if r.quality is not None:
            quality = _QUALITY.get(r.quality)
            if quality is None:
                raise Rejected(
                    Reason.MALFORMED,
                    f"record {index}: quality is good, suspect or bad, not {r.quality[:80]!r}",
                )
            columns.quality[row] = quality
        if value is None:
            columns.other[row] = _other(r)
        if seconds < ABSOLUTE:
            columns.relative.append(row)
            untimed += 1
        add_slot(slot)
        add_seconds(seconds)
        add_number(value)
        add_record(index)
    return counted, untimed


def _other(r: Record) -> tuple[Kind, str]:
    if r.vb is not None:
        return Kind.BOOLEAN, "true" if r.vb else "false"
    return Kind.TEXT, msgspec.json.encode(r.vs if r.vs is not None else r.vd).decode()


def _unresolved(
    receipt: int,
    index: int,
    r: Record,
    name: str,
    base_unit: str | None,
    value: float | None,
    seconds: float,
    received_at: Micros,
    catalogue: Catalogue,
) -> NewRejection:
    """Neither name and unit together are known: the stream is not, or has another unit."""
    unit = r.u or base_unit
    resolved = {
        "n": name, "u": unit, "time": _micros(seconds, received_at), "v": value, "vs": r.vs, "vb": r.vb, "vd": r.vd,
        "quality": r.quality,
    }  # fmt: skip
    content = msgspec.json.encode({key: x for key, x in resolved.items() if x is not None}).decode()
    if name not in catalogue:
        detail = "no Datastream has this stream name; it is taken up when a descriptor registers it"
        return NewRejection(receipt, index, Reason.UNKNOWN_STREAM, detail, name, content)
    units = " or ".join(sorted(repr(u) for u in catalogue.streams[catalogue.by_name[name]].units)) or "none"
    detail = f"the unit {unit!r} is not the Datastream's, which is {units}"
    return NewRejection(receipt, index, Reason.UNIT_MISMATCH, detail, name, content)


def _micros(seconds: float, received_at: Micros) -> Micros:
    near = min(max(seconds, -_FAR), _FAR) if seconds == seconds else _FAR  # noqa: PLR0124 -- NaN
    return round(near * 1e6) + (received_at if near < ABSOLUTE else 0)


def _check(
    columns: _Columns,
    rows_of: list[int],
    receipts: list[Receipt],
    rejections: list[NewRejection],
    catalogue: Catalogue,
    rules: Rules,
) -> tuple[Observations, Int64, Int64]:
    """Hold all rows against their streams at once; return those that may be stored, with their receipts and records."""
    n = len(columns.slot)
    slot = np.array(columns.slot, np.int64)
    receipt = np.repeat(np.arange(len(receipts)), rows_of)
    record = np.array(columns.record, np.int64)
    number = np.array(columns.number, np.float64)  # None becomes NaN
    kind = np.full(n, Kind.NUMBER, np.int64)
    quality = np.zeros(n, np.int8)
    for row, (other, _) in columns.other.items():
        kind[row] = other
    for row, flag in columns.quality.items():
        quality[row] = flag

    received = np.array([r.received_at for r in receipts], np.int64)[receipt]
    seconds = np.array(columns.seconds, np.float64)
    timeless = ~np.isfinite(seconds)
    time = np.rint(np.clip(np.where(timeless, 0, seconds), -_FAR, _FAR) * 1e6).astype(np.int64)
    relative = np.array(columns.relative, np.int64)
    time[relative] += received[relative]

    ours = np.array([catalogue.gateway_code(r.gateway) for r in receipts], np.int64)[receipt]
    owner = catalogue.owner[slot] if n else slot
    foreign = (owner != -1) & (owner != ours)
    for row in np.flatnonzero(foreign & (owner == -2)).tolist():
        foreign[row] = not catalogue.may_feed(receipts[receipt[row]].gateway, int(slot[row]))
    takes = catalogue.takes[slot] if n else slot
    verdicts = (
        (foreign, Reason.NOT_YOURS, "the stream belongs to another gateway"),
        ((takes & kind) == 0, Reason.TYPE_MISMATCH, "the Datastream's observationType takes no such value"),
        (
            (kind == Kind.NUMBER) & ~np.isfinite(number),
            Reason.NOT_FINITE,
            "NaN and infinity are no measurements",
        ),
        (timeless, Reason.NOT_FINITE, "the time is not finite"),
        (
            time > received + rules.future,
            Reason.TIME_IN_FUTURE,
            f"later than {rules.future // SECOND} s after its receipt",
        ),
        (time < rules.earliest, Reason.TIME_IMPLAUSIBLE, "before the year 2000"),
    )
    kept = np.ones(n, np.bool_)
    for mask, reason, detail in verdicts:
        for row in np.flatnonzero(mask & kept).tolist():
            name = catalogue.streams[slot[row]].name
            content = _content(columns, row, name, int(time[row]))
            rejections.append(
                NewRejection(int(receipt[row]), int(record[row]), reason, detail, name, content)
            )
        kept &= ~mask
    rows = Observations(
        datastream=catalogue.datastream[slot] if n else slot,
        time=time,
        number=number,
        quality=quality,
        feature=catalogue.features_at(slot, time) if n else slot,
        json=_sparse(n, {row: text for row, (_, text) in columns.other.items()}),
        parameters=_sparse(n, {row: f'{{"sum":{total!r}}}' for row, total in columns.total.items()}),
    )
    if kept.all():
        return rows, receipt, record
    return rows.take(kept), receipt[kept], record[kept]


def _sparse(length: int, values: dict[int, str]) -> list[str | None] | None:
    return [values.get(row) for row in range(length)] if values else None


def _content(columns: _Columns, row: int, name: str, time: Micros) -> str:
    kind, text = columns.other.get(row, (Kind.NUMBER, None))
    value = msgspec.Raw(text.encode()) if text is not None else columns.number[row]
    label = {Kind.NUMBER: "v", Kind.BOOLEAN: "vb", Kind.TEXT: "vs"}[kind]
    return msgspec.json.encode({"n": name, "time": time, label: value}).decode()


class OpenRejection(msgspec.Struct, frozen=True):
    """A rejected record as the store keeps it, that may be stored by now. content: what `NewRejection.content` was."""

    id: int
    receipt: Receipt
    record: int
    content: dict[str, Any]


def take_up(rejections: Iterable[OpenRejection], catalogue: Catalogue, rules: Rules) -> Write:
    """Hold rejected records against the catalogue again: a write that closes those whose stream is known now."""
    columns = _Columns()
    receipts: list[Receipt] = []
    closes: list[int] = []
    again: list[NewRejection] = []
    rows_of: list[int] = []
    for rejection in rejections:
        fields = rejection.content
        r = msgspec.convert({key: x for key, x in fields.items() if key not in {"time", "n"}}, Record)
        slot = catalogue.slots.get((fields["n"], r.u))
        if fields["n"] not in catalogue:
            continue
        closes.append(rejection.id)
        receipts.append(rejection.receipt)
        if slot is None:
            seconds = fields["time"] / 1e6
            unresolved = _unresolved(
                len(receipts) - 1, rejection.record, r, fields["n"], None, r.v, seconds, 0, catalogue
            )
            again.append(unresolved)
            rows_of.append(0)
            continue
        row = len(columns.slot)
        if r.quality in _QUALITY:
            columns.quality[row] = _QUALITY[r.quality]
        if r.v is None:
            columns.other[row] = _other(r)
        columns.slot.append(slot)
        columns.seconds.append(fields["time"] / 1e6)
        columns.number.append(r.v)
        columns.record.append(rejection.record)
        rows_of.append(1)
    rows, receipt, record = _check(columns, rows_of, receipts, again, catalogue, rules)
    return Write(
        rows=rows, receipt=receipt, record=record, receipts=receipts, rejections=again,
        catalogue_version=catalogue.version, closes=closes,
    )  # fmt: skip
