"""Packs -> columns: every record of every pack becomes a row for the store or a rejection with its reason.

Pure: no connection, no clock. `resolve` makes columns of the records; here they are held against their streams.
"""

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import numpy as np

from citylab import senml
from citylab.columns import NO_TIME, Float64, Int64, Observations
from citylab.errors import Rejected
from citylab.model import HOUR, SECOND, Batch, Event, Micros, Reason, Topic
from citylab.ports import START
from citylab.senml import Record
from citylab.times import format_instant
from citylab.writes import LEAST_MOVE, NewRejection, Receipt, Span, Write
from processing.catalogue import NO_STREAM, Catalogue, Kind
from processing.resolve import QUALITY, BoolArray, Columns, Times, resolve

HOLDS_NUL = "its text holds the character NUL, which the store cannot keep"
_KIND = {"vs": Kind.TEXT, "vb": Kind.BOOLEAN, "vd": Kind.TEXT}


@dataclass(frozen=True)
class Rules:
    """Limits that a pack must keep. future and earliest in µs; least_move, of a Thing that moves, in m.

    received: the moment from which `future` counts, where that is later than the receipt.
    """

    most_records: int = 5_000
    most_bytes: int = 256 * 1024
    future: Micros = HOUR
    earliest: Micros = 946_684_800 * SECOND  # the year 2000
    least_move: float = LEAST_MOVE
    received: Micros = 0


def decode(
    batches: Iterable[Batch], catalogue: Catalogue, rules: Rules, *, refused: Container[tuple[int, int]] = ()
) -> Write:
    """Turn the packs of some batches into one write for the store.

    refused: (partition, offset) of packs that the store was found to refuse, though nothing here is against them.
    """
    columns = Columns()
    packs: list[tuple[Batch, Event]] = []
    rows_of: list[int] = []
    malformed: list[NewRejection] = []
    spans: dict[int, Span] = {}
    for batch in batches:
        before = spans[batch.partition].before if batch.partition in spans else batch.before
        spans[batch.partition] = Span(batch.topic, batch.partition, before, batch.after)
        for event in batch.events:
            begin = len(columns)
            try:
                if (batch.partition, event.offset) in refused:
                    raise Rejected(Reason.MALFORMED, "it holds a value that the store cannot keep")
                resolve(_read(event, rules), catalogue, columns)
            except Rejected as error:
                columns.cut(begin)
                malformed.append(
                    NewRejection(len(packs), -1, Reason(error.reason), error.detail, payload=event.value)
                )
            packs.append((batch, event))
            rows_of.append(len(columns) - begin)
    receipt = np.repeat(np.arange(len(packs)), np.array(rows_of, np.int64))
    times = columns.times(np.array([event.time for _, event in packs], np.int64)[receipt])
    receipts = _receipts(packs, rows_of, {r.receipt for r in malformed}, receipt, times)
    candidates = _Candidates(columns, times, receipts, receipt, catalogue)
    rows, receipt, record, rejections = _judge(candidates, rules)
    return Write(
        rows=rows,
        receipt=receipt,
        record=record,
        receipts=receipts,
        rejections=[*malformed, *rejections],
        spans=list(spans.values()),
        catalogue_version=catalogue.version,
        least_move=rules.least_move,
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


def _receipts(
    packs: Sequence[tuple[Batch, Event]],
    rows_of: Sequence[int],
    malformed: set[int],
    receipt: Int64,
    times: Times,
) -> list[Receipt]:
    untimed = np.bincount(receipt[times.relative], minlength=len(packs)).tolist()
    newest = np.full(len(packs), NO_TIME)
    some = np.array(rows_of, np.int64) > 0
    if some.any():
        begins = np.flatnonzero(np.r_[True, receipt[1:] != receipt[:-1]])
        newest[some] = np.maximum.reduceat(
            np.where(times.finite & ~times.relative, times.time, NO_TIME), begins
        )
    return [
        Receipt(
            event.headers["gateway"], int(event.headers.get("epoch", 0)), int(event.headers.get("seq", 0)),
            Topic(batch.topic), batch.partition, event.offset, event.time, 1 if i in malformed else rows_of[i],
            moment if moment != NO_TIME else None, untimed[i],
        )
        for i, ((batch, event), moment) in enumerate(zip(packs, newest.tolist(), strict=True))
    ]  # fmt: skip


@dataclass(frozen=True)
class _Candidates:
    """Rows before they are judged. receipt: int64, shape (n,), index into `receipts`."""

    columns: Columns
    times: Times
    receipts: Sequence[Receipt]
    receipt: Int64
    catalogue: Catalogue

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def slot(self) -> Int64:
        return np.array(self.columns.slot, np.int64)

    @cached_property
    def number(self) -> Float64:
        return np.array(self.columns.number, np.float64)  # None becomes NaN

    def rejection(self, row: int, reason: Reason, detail: str) -> NewRejection:
        """The record with what is known of it, as JSON that the store can keep. Without a detail, the units say it."""
        columns, catalogue = self.columns, self.catalogue
        slot = columns.slot[row]
        name, unit = columns.unmatched.get(row) or (catalogue.streams[slot].name, catalogue.units[slot])
        label, value = columns.other.get(row, ("v", columns.number[row]))
        content = {
            "n": name,
            "u": unit,
            "time": int(self.times.time[row]) if self.times.finite[row] else None,
            label: value,
            "s": columns.total.get(row),
            "quality": columns.quality[row].name.lower() if row in columns.quality else None,
        }
        text = _json({label: _keepable(x) for label, x in content.items() if x is not None})
        if not detail:
            units = " or ".join(sorted(map(repr, catalogue.streams[slot].units))) or "none"
            detail = f"the unit {unit!r} is not the Datastream's, which is {units}"
        return NewRejection(int(self.receipt[row]), columns.record[row], reason, detail, name, text)


def _judge(candidates: _Candidates, rules: Rules) -> tuple[Observations, Int64, Int64, list[NewRejection]]:
    """Hold all rows against their streams at once; return what may be stored, with receipts and records, and the rest."""
    columns, catalogue = candidates.columns, candidates.catalogue
    rejections: list[NewRejection] = []
    kept = np.ones(len(candidates), np.bool_)
    for mask, reason, detail in _verdicts(candidates, rules):
        rejections += [
            candidates.rejection(row, reason, detail) for row in np.flatnonzero(mask & kept).tolist()
        ]
        kept &= ~mask
    index = np.flatnonzero(kept)
    slot, time = candidates.slot[index], candidates.times.time[index]
    quality = np.zeros(len(candidates), np.int8)
    for row, flag in columns.quality.items():
        quality[row] = flag
    rows = Observations(
        datastream=catalogue.datastream[slot],
        time=time,
        number=candidates.number[index],
        quality=quality[index],
        feature=catalogue.features_at(slot, time),
        json=_sparse(index, {row: _json(value) for row, (_, value) in columns.other.items()}),
        parameters=_sparse(index, {row: _json({"sum": total}) for row, total in columns.total.items()}),
    )
    return rows, candidates.receipt[index], np.array(columns.record, np.int64)[index], rejections


def _verdicts(c: _Candidates, rules: Rules) -> Iterator[tuple[BoolArray, Reason, str]]:
    """Which rows are rejected, bool of shape (n,), and why; a row's first reason stands.

    First what no stream could ever take, then the order of the contracts' table.
    """
    kind = np.full(len(c), Kind.NUMBER, np.int64)
    endless, unkeepable, unmatched = (np.zeros(len(c), np.bool_) for _ in range(3))
    for row, (label, value) in c.columns.other.items():
        kind[row] = _KIND[label]
        unkeepable[row] = isinstance(value, str) and "\0" in value
    for row, total in c.columns.total.items():
        endless[row] = not math.isfinite(total)
    for row, (_, unit) in c.columns.unmatched.items():
        unmatched[row] = True
        unkeepable[row] |= unit is not None and "\0" in unit
    endless |= (kind == Kind.NUMBER) & ~np.isfinite(c.number)
    yield endless, Reason.NOT_FINITE, "NaN and infinity are no measurements"
    yield ~c.times.finite, Reason.NOT_FINITE, "the time is not finite"
    yield unkeepable, Reason.TYPE_MISMATCH, HOLDS_NUL

    unknown = c.slot == NO_STREAM
    detail = "no Datastream has this stream name; it is taken up when a descriptor registers it"
    yield unknown, Reason.UNKNOWN_STREAM, detail
    owner = c.catalogue.owner[c.slot]
    ours = np.array([c.catalogue.gateway_code(r.gateway) for r in c.receipts], np.int64)[c.receipt]
    foreign = (owner != -1) & (owner != ours)
    for row in np.flatnonzero(foreign & (owner == -2)).tolist():
        foreign[row] = not c.catalogue.may_feed(c.receipts[c.receipt[row]].gateway, int(c.slot[row]))
    yield foreign, Reason.NOT_YOURS, "the stream belongs to another gateway"
    detail = "the Datastream's observationType takes no such value"
    yield (c.catalogue.takes[c.slot] & kind) == 0, Reason.TYPE_MISMATCH, detail
    yield unmatched & ~unknown, Reason.UNIT_MISMATCH, ""

    received = np.array([max(r.received_at, rules.received) for r in c.receipts], np.int64)[c.receipt]
    detail = f"later than {rules.future // SECOND} s after its receipt"
    yield c.times.time > received + rules.future, Reason.TIME_IN_FUTURE, detail
    detail = f"before {format_instant(rules.earliest)}"
    yield c.times.time < rules.earliest, Reason.TIME_IMPLAUSIBLE, detail


def _keepable(value: Any) -> Any:
    """JSON has no NaN and no infinity, and PostgreSQL's no NUL."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _sparse(index: Int64, values: dict[int, str]) -> list[str | None] | None:
    return [values.get(row) for row in index.tolist()] if values else None


class OpenRejection(msgspec.Struct, frozen=True):
    """A rejected record as the store keeps it, that may be stored by now. content: as `NewRejection.content`.

    asked: whether somebody asked for it, and not only its stream is known now.
    """

    id: int
    receipt: Receipt
    record: int
    content: dict[str, Any]
    asked: bool = False


class RefusedPack(NamedTuple):
    """A pack that was refused whole, as the store keeps it."""

    id: int
    topic: Topic
    event: Event


def take_up(rejections: Iterable[OpenRejection], catalogue: Catalogue, rules: Rules) -> Write:
    """Hold rejected records against the catalogue again: a write that closes those whose stream is known now.

    Those that were asked for are closed in any case: what is still against them is a rejection of this write.
    """
    columns = Columns()
    known = [one for one in rejections if one.asked or one.content["n"] in catalogue]
    for row, rejection in enumerate(known):
        content = rejection.content
        name, unit = content["n"], content.get("u")
        slot = catalogue.slots.get((name, unit))
        if slot is None:
            slot = catalogue.by_name.get(name, NO_STREAM)
            columns.unmatched[row] = name, unit
        for label in _KIND:
            if label in content:
                columns.other[row] = label, content[label]
        if "s" in content:
            columns.total[row] = float(content["s"])
        if "quality" in content:
            columns.quality[row] = QUALITY[content["quality"]]
        columns.slot.append(slot)
        columns.number.append(float(content["v"]) if "v" in content else None)
        columns.record.append(rejection.record)
    receipts = [rejection.receipt for rejection in known]
    finite = np.array(["time" in rejection.content for rejection in known], np.bool_)
    time = np.array([rejection.content.get("time", 0) for rejection in known], np.int64)
    times = Times(time, np.zeros(len(known), np.bool_), finite)
    candidates = _Candidates(columns, times, receipts, np.arange(len(known)), catalogue)
    rows, receipt, record, again = _judge(candidates, rules)
    return Write(
        rows=rows, receipt=receipt, record=record, receipts=receipts, rejections=again,
        catalogue_version=catalogue.version, closes=[rejection.id for rejection in known], least_move=rules.least_move,
    )  # fmt: skip


def take_up_packs(packs: Sequence[RefusedPack], catalogue: Catalogue, rules: Rules) -> Write:
    """Decode packs again that were refused whole: a write that closes their rejections."""
    batches = [Batch(pack.topic, pack.event.partition, START, [pack.event], START) for pack in packs]
    return replace(decode(batches, catalogue, rules), spans=(), closes=[pack.id for pack in packs])
