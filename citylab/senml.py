"""SenML packs (RFC 8428) in JSON and CBOR: records as they stand in a pack, and what makes a pack malformed."""

import base64
import io
import re
from collections.abc import Callable
from typing import Any

import cbor2
import msgspec

from citylab.errors import Rejected
from citylab.model import LARGEST_NUMBER, Reason

VERSION = 10  # of SenML that RFC 8428 describes
ABSOLUTE = 2**28  # seconds; a smaller time is relative to the receipt (RFC 8428 §4.5.3)
LONGEST_NAME = 1_024  # characters; ours, because names are keys of the store
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9\-:./_]{{0,{LONGEST_NAME - 1}}}")  # RFC 8428 §4.5.1


class Record(msgspec.Struct, gc=False):
    """One element of a pack; None where a field is absent. Fields unknown to RFC 8428 are ignored (§4.4).

    `epoch`, `seq` and `quality` are ours (the contracts, Packs).
    """

    n: str | None = None
    u: str | None = None
    v: float | None = None
    t: float | None = None
    quality: str | None = None
    bn: str | None = None
    bt: float | None = None
    bu: str | None = None
    bv: float | None = None
    bs: float | None = None
    bver: int | None = None
    vs: str | None = None
    vb: bool | None = None
    vd: str | None = None
    s: float | None = None
    ut: float | None = None
    epoch: int | None = None
    seq: int | None = None


# RFC 8428 §6, Table 4: CBOR labels.
_CBOR_LABELS = {
    -1: "bver", -2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs",
    0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 5: "s", 6: "t", 7: "ut", 8: "vd",
}  # fmt: skip
# Tags that cbor2 would build objects from: dates, references, regular expressions, mail, addresses, sets. In SenML
# only bignums (2, 3) and decimal fractions (4) are numbers; whatever else is tagged is a field that we ignore.
_IGNORED_TAGS = (0, 1, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000)
_ignored: dict[int, Callable[[Any, bool], Any]] = dict.fromkeys(_IGNORED_TAGS, lambda _, __: cbor2.undefined)
_decode_json = msgspec.json.Decoder(list[Record]).decode
_decode_labels = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_JSON_IDENTITY = re.compile(rb'\s*\[\s*\{\s*"epoch"\s*:\s*(\d{1,16})\s*,\s*"seq"\s*:\s*(\d{1,16})\s*[,}]')


def decode(payload: bytes) -> list[Record]:
    """Read a pack. Raises `Rejected("malformed")` with the record's index where it is known, and the rule that failed."""
    if not payload:
        raise Rejected(Reason.MALFORMED, "an empty message is no SenML pack")
    if 0x80 <= payload[0] <= 0x9F:
        return _decode_cbor(payload)
    if payload[0] != 0x5B:  # [
        raise Rejected(
            Reason.MALFORMED, "a SenML pack is an array: in JSON it begins with [, in CBOR with 0x80 to 0x9F"
        )
    try:
        # Only a field whose name ends in an underscore, or one written with escapes, needs the longer way round.
        if b'_"' in payload or b"\\" in payload:
            for index, fields in enumerate(_decode_labels(payload)):
                _refuse_what_must_be_understood(index, fields)
        return _decode_json(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(Reason.MALFORMED, str(error)) from error


def _decode_cbor(payload: bytes) -> list[Record]:
    stream = io.BytesIO(payload)
    try:
        pack = cbor2.CBORDecoder(stream, semantic_decoders=_ignored).decode()
    except Exception as error:  # whatever it raises, the bytes are to blame
        raise Rejected(Reason.MALFORMED, f"not CBOR: {error}") from error
    if stream.tell() != len(payload):
        raise Rejected(Reason.MALFORMED, f"the pack ends at byte {stream.tell()} of {len(payload)}")
    records = []
    for index, element in enumerate(pack):
        if not isinstance(element, dict):
            raise Rejected(Reason.MALFORMED, f"record {index} is no map")
        fields = {
            label if isinstance(label, str) else _CBOR_LABELS[label]: value
            for label, value in element.items()
            if isinstance(label, str) or (type(label) is int and label in _CBOR_LABELS)  # True is no label
        }
        _refuse_what_must_be_understood(index, fields)
        if isinstance(data := fields.get("vd"), bytes):
            fields["vd"] = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
        try:
            records.append(msgspec.convert(fields, Record))
        except msgspec.ValidationError as error:
            raise Rejected(Reason.MALFORMED, f"record {index}: {error}") from error
    return records


def _refuse_what_must_be_understood(index: int, fields: dict[str, Any]) -> None:
    """A field ending in `_` must be understood or the pack refused (RFC 8428 §4.4); we understand none."""
    for label in fields:
        if label.endswith("_"):
            raise Rejected(
                Reason.MALFORMED, f"record {index}: the field {label[:80]!r} must be understood, and is not"
            )


def identity(payload: bytes) -> tuple[int, int]:
    """Find `epoch` and `seq`, written first in the first record, without decoding the pack.

    Raises `Rejected("malformed")`.
    """
    if match := _JSON_IDENTITY.match(payload):
        epoch, seq = int(match[1]), int(match[2])
    else:
        epoch, seq = _cbor_identity(payload)
    if not (1 <= epoch <= LARGEST_NUMBER and 1 <= seq <= LARGEST_NUMBER):
        raise Rejected(
            Reason.MALFORMED, "epoch and seq, first in the first record, are integers from 1 to 2^53-1"
        )
    return epoch, seq


def _cbor_identity(payload: bytes) -> tuple[int, int]:
    at = _skip_head(payload, 0, 0x80, 0x9F)
    at = _skip_head(payload, at, 0xA0, 0xBF)
    numbers = []
    for label in (b"\x65epoch", b"\x63seq"):
        if payload[at : at + len(label)] != label:
            return 0, 0
        at += len(label)
        head = payload[at] if at < len(payload) else 0xFF
        if head > 0x1B:
            return 0, 0
        size = 0 if head < 0x18 else 1 << (head - 0x18)
        if at + 1 + size > len(payload):
            return 0, 0
        numbers.append(int.from_bytes(payload[at + 1 : at + 1 + size]) if size else head)
        at += 1 + size
    return numbers[0], numbers[1]


def _skip_head(payload: bytes, at: int, least: int, greatest: int) -> int:
    """The place after the head of an array or map, or the payload's end when there is none."""
    if at >= len(payload) or not least <= payload[at] <= greatest:
        return len(payload)
    length = payload[at] & 0x1F
    return at + 1 + (1 << (length - 0x18) if 0x18 <= length <= 0x1B else 0)


def check_name(index: int, name: str) -> None:
    """Refuse a resolved name that RFC 8428 §4.5.1 does not allow. Raises `Rejected("malformed")`."""
    if not name:
        raise Rejected(Reason.MALFORMED, f"record {index} has neither a name nor a base name")
    if not NAME.fullmatch(name):
        raise Rejected(
            Reason.MALFORMED,
            f"record {index}: a stream name begins with an ASCII letter or digit and goes on with those and - : . / _,"
            f" at most {LONGEST_NAME} characters, which {name[:80]!r} does not",
        )
