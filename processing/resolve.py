"""Records -> resolved records (RFC 8428 §4.6) as columns: base fields folded in, streams looked up, times rounded.

Pure: no connection, no clock. The loop over records is the platform's hottest Python; keep objects out of it.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from citylab import senml
from citylab.columns import Float64, Int64
from citylab.errors import Rejected
from citylab.model import SECOND, Quality, Reason
from citylab.senml import ABSOLUTE, VERSION, Record
from processing.catalogue import NO_STREAM, Catalogue

BoolArray = NDArray[np.bool_]
QUALITY = {"good": Quality.GOOD, "suspect": Quality.SUSPECT, "bad": Quality.BAD}
FAR = 9e12  # seconds: further away than any time that is accepted, near enough for whole µs in an int64


@dataclass
class Columns:
    """Resolved records in the making, a row each: what every record has in lists, rare properties by row.

    slot: of the stream with its name, or NO_STREAM; number: its value, None where that is no number; record: its
    index in the pack; time: s after its base time; base: the first row of each run with one base time, and that in s.
    """

    slot: list[int] = field(default_factory=list)
    number: list[float | None] = field(default_factory=list)
    record: list[int] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    base: list[tuple[int, float]] = field(default_factory=list)
    unmatched: dict[int, tuple[str, str | None]] = field(
        default_factory=dict
    )  # name, unit: no stream has both
    quality: dict[int, Quality] = field(default_factory=dict)
    other: dict[int, tuple[str, str | bool]] = field(
        default_factory=dict
    )  # a value that is no number: label, value
    total: dict[int, float] = field(default_factory=dict)  # the sum beside a value

    def __len__(self) -> int:
        return len(self.slot)

    def cut(self, length: int) -> None:
        """Take back the rows of a pack that turned out malformed."""
        for many in (self.slot, self.number, self.record, self.time):
            del many[length:]
        while self.base and self.base[-1][0] >= length:
            self.base.pop()
        rare: tuple[dict[int, Any], ...] = (self.unmatched, self.quality, self.other, self.total)
        for column in rare:
            while column and next(reversed(column)) >= length:
                column.popitem()

    def times(self, received: Int64) -> "Times":
        """When the records were measured. received: int64 µs, shape (n,), when their packs were."""
        begins = np.array([row for row, _ in self.base] + [len(self)], np.int64)
        base = np.repeat(np.array([base for _, base in self.base], np.float64), begins[1:] - begins[:-1])
        return times(base, np.array(self.time, np.float64), received)


def resolve(records: list[Record], catalogue: Catalogue, columns: Columns) -> None:  # noqa: C901 -- unrolled for speed
    """Append a row for each record of a pack that has a value or a sum.

    Raises `Rejected("malformed")`; then rows of this pack may have been appended, and are to be cut.
    """
    slot_of = catalogue.slots.get
    add_slot, add_number = columns.slot.append, columns.number.append
    add_record, add_time = columns.record.append, columns.time.append
    base_name, base_unit = "", None
    base_value = base_sum = None
    version = VERSION
    row = len(columns)
    columns.base.append((row, 0.0))
    for index, r in enumerate(records):
        if r.bn is not None:
            base_name = r.bn
        if r.bt is not None:
            columns.base.append((row, r.bt))
        if r.bu is not None:
            base_unit = r.bu or None
        if r.bv is not None:
            base_value = r.bv
        if r.bs is not None:
            base_sum = r.bs
        if r.bver is not None:
            version = _version(index, r.bver, version)
        number = r.v
        if (
            number is None or r.vs is not None or r.vb is not None or r.vd is not None
            or r.s is not None or base_value is not None or base_sum is not None
        ):  # fmt: skip
            value = _value(index, r, base_value, base_sum)
            if value is None:
                continue  # it only sets base fields
            number = value.number
            if value.other is not None:
                columns.other[row] = value.other
            if value.total is not None:
                columns.total[row] = value.total
        name = base_name + r.n if r.n else base_name
        slot = slot_of((name, r.u or base_unit))
        if slot is None:
            slot = catalogue.by_name.get(name, NO_STREAM)
            if slot == NO_STREAM:
                senml.check_name(index, name)
            columns.unmatched[row] = name, r.u or base_unit
        if r.quality is not None:
            columns.quality[row] = _quality(index, r.quality)
        add_slot(slot)
        add_number(number)
        add_record(index)
        add_time(0.0 if r.t is None else r.t)
        row += 1


def _version(index: int, version: int, of_pack: int) -> int:
    """The version of a pack, once a record has named one (RFC 8428 §4.4)."""
    if not 1 <= version <= VERSION:
        raise Rejected(
            Reason.MALFORMED, f"record {index}: SenML versions 1 to {VERSION} are understood, not {version}"
        )
    if index and version != of_pack:
        raise Rejected(
            Reason.MALFORMED,
            f"record {index}: all records of a pack have one version, and {version} is not {of_pack}",
        )
    return version


def _quality(index: int, quality: str) -> Quality:
    if quality not in QUALITY:
        raise Rejected(
            Reason.MALFORMED, f"record {index}: quality is good, suspect or bad, not {quality[:80]!r}"
        )
    return QUALITY[quality]


class _Value(NamedTuple):
    """A record's value: a number, or the label and the value of what is none; and the sum beside it."""

    number: float | None
    other: tuple[str, str | bool] | None
    total: float | None


def _value(index: int, r: Record, base_value: float | None, base_sum: float | None) -> _Value | None:
    """Fold base value and base sum in (RFC 8428 §4.5.4); None for a record that only sets base fields.

    A sum without a value is the result; beside a value it is kept with it.
    """
    given = [label for label in ("v", "vs", "vb", "vd") if getattr(r, label) is not None]
    if len(given) > 1:
        raise Rejected(Reason.MALFORMED, f"record {index} has more than one value: {', '.join(given)}")
    if not given and r.s is None and r.n is None and r.t is None and r.u is None:
        return None
    total = None if r.s is None and base_sum is None else (r.s or 0.0) + (base_sum or 0.0)
    if given and given != ["v"]:
        return _Value(None, (given[0], getattr(r, given[0])), total)
    if given or base_value is not None:
        return _Value((r.v or 0.0) + (base_value or 0.0), None, total)
    if total is None:
        raise Rejected(Reason.MALFORMED, f"record {index} has neither a value nor a sum")
    return _Value(total, None, None)


class Times(NamedTuple):
    """When records were measured. time: int64 µs; relative, finite: bool; all of shape (n,)."""

    time: Int64
    relative: BoolArray
    finite: BoolArray


def times(base: Float64, time: Float64, received: Int64) -> Times:
    """Round base + time, in s, to whole µs; what is below 2^28 s is relative to the receipt (RFC 8428 §4.5.3).

    Whole seconds and fractions are added apart: from 2038 on, a sum of two float64 may be half a microsecond off.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        seconds = base + time
    finite = np.isfinite(seconds)
    near = (np.abs(base) < FAR) & (np.abs(time) < FAR) & (np.abs(seconds) < FAR)
    base, time = np.where(near, base, 0), np.where(near, time, 0)
    whole_base, whole_time = np.floor(base), np.floor(time)
    micros = (whole_base + whole_time).astype(np.int64) * SECOND
    micros += np.rint(((base - whole_base) + (time - whole_time)) * 1e6).astype(np.int64)
    far = finite & ~near
    micros[far] = np.clip(seconds[far], -FAR, FAR).astype(np.int64) * SECOND
    relative = finite & (seconds < ABSOLUTE)
    micros[relative] += received[relative]
    return Times(micros, relative, finite)
