"""SenML packs as they stand: RFC 8428 §4.3 to §6, and nothing from the outside that stops the reader."""

import json
import struct
from contextlib import contextmanager
from typing import Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from citylab.errors import Rejected
from citylab.model import LARGEST_NUMBER
from citylab.senml import LONGEST_NAME, Record, check_name, decode, identity

# RFC 8428 §6: the second example of §5.1.2 in CBOR.
RFC_CBOR = bytes.fromhex(
    "87a721781b75726e3a6465763a6f773a3130653230373361303130383030363a"
    "22fb41d303a15b00106223614120050067766f6c7461676501615602fb405e06"
    "6666666666a3006763757272656e74062402fb3ff3333333333333a300676375"
    "7272656e74062302fb3ff4cccccccccccda3006763757272656e74062202fb3f"
    "f6666666666666a3006763757272656e74062102f93e00a3006763757272656e"
    "74062002fb3ff999999999999aa3006763757272656e74060002fb3ffb333333"
    "333333"
)


@contextmanager
def suppress_refusal():
    try:
        yield
    except Rejected as error:
        if error.reason != "malformed" or not error.detail:
            raise


def detail_of(payload: bytes) -> str:
    with pytest.raises(Rejected) as caught:
        decode(payload)
    assert caught.value.reason == "malformed"
    return caught.value.detail


def test_the_cbor_of_the_rfc_is_its_json():
    json_pack = b"""[
     {"bn":"urn:dev:ow:10e2073a0108006:","bt":1.276020076001e+09,
      "bu":"A","bver":5,
      "n":"voltage","u":"V","v":120.1},
     {"n":"current","t":-5,"v":1.2},
     {"n":"current","t":-4,"v":1.3},
     {"n":"current","t":-3,"v":1.4},
     {"n":"current","t":-2,"v":1.5},
     {"n":"current","t":-1,"v":1.6},
     {"n":"current","t":0,"v":1.7}
   ]"""

    assert len(RFC_CBOR) == 0xC3
    assert decode(RFC_CBOR) == decode(json_pack)
    assert decode(RFC_CBOR)[0] == Record(
        bn="urn:dev:ow:10e2073a0108006:", bt=1276020076.001, bu="A", bver=5, n="voltage", u="V", v=120.1
    )


def test_every_label_is_read_in_json_and_in_cbor():
    fields = {
        "bver": 10, "bn": "a", "bt": 1.5, "bu": "V", "bv": 2.5, "bs": 3.5, "n": "b", "u": "A", "v": 4.5, "vs": "c",
        "vb": True, "s": 5.5, "t": 6.5, "ut": 7.5, "vd": "aGk", "epoch": 1, "seq": 2, "quality": "good",
    }  # fmt: skip
    labels = {
        "bver": -1, "bn": -2, "bt": -3, "bu": -4, "bv": -5, "bs": -6, "n": 0, "u": 1, "v": 2, "vs": 3, "vb": 4,
        "s": 5, "t": 6, "ut": 7, "vd": 8,
    }  # fmt: skip
    in_cbor = {labels.get(label, label): value for label, value in fields.items()} | {8: b"hi"}

    assert set(fields) == set(Record.__struct_fields__)
    assert decode(json.dumps([fields]).encode()) == [Record(**fields)]
    assert decode(cbor2.dumps([in_cbor])) == [Record(**fields)]


def test_data_in_cbor_is_written_as_json_would_base64url_without_padding():
    (record,) = decode(cbor2.dumps([{0: "a", 8: b"\xfb\xff\x00\x01"}]))

    assert record.vd == "-_8AAQ"


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("1b0020000000000001", 2.0**53),  # of 2^53 + 1, a float64 has the even neighbour
        ("c48221196ab3", 273.15),  # decimal fraction
        ("c249010000000000000000", 2.0**64),  # bignum
        ("f93e00", 1.5),
        ("fa3fc00000", 1.5),
        ("3903e7", -1000.0),
    ],
)
def test_a_number_in_cbor_may_be_an_integer_a_float_or_a_decimal_fraction(number, value):
    (record,) = decode(bytes.fromhex("81a200616102" + number))

    assert record.v == value


def test_an_indefinite_array_and_map_are_read():
    assert decode(bytes.fromhex("9fbf0061610201ffff")) == [Record(n="a", v=1)]


def test_unknown_fields_are_ignored():
    json_pack = b'[{"n":"a","v":1,"new":{"x":[1]},"_a":1,"b_c":"\\n"}]'
    cbor_pack = cbor2.dumps(
        [{0: "a", 2: 1, "new": {"x": [1]}, 99: 1, -7: 1, True: "A", 2.5: 1, None: 1, b"vs": 1}]
    )

    assert decode(json_pack) == decode(cbor_pack) == [Record(n="a", v=1)]


def test_what_an_unknown_field_holds_is_not_looked_at():
    assert decode(b'[{"n":"a\\u0062","v":1,"x":1e999,"y":' + b"9" * 5000 + b"}]") == [Record(n="ab", v=1)]
    tagged = bytes.fromhex("81a300616102016178") + cbor2.dumps(cbor2.CBORTag(0, "yesterday"))
    assert decode(tagged) == [Record(n="a", v=1)]


@pytest.mark.parametrize(
    "payload",
    [
        b'[{"n":"a","v":1},{"n":"b","v":1,"new_":1}]',
        b'[{"n":"a","v":1},{"n":"b","v":1,"new_" :1}]',
        b'[{"n":"a","v":1},{"n":"b","v":1,"new\\u005f":1}]',
        b'[{"n":"a","v":1},{"n":"b","v":1,"\\u006eew_":null}]',
        b'[{"n":"a","v":1},{"_":0}]',
        cbor2.dumps([{0: "a", 2: 1}, {0: "b", 2: 1, "new_": 1}]),
    ],
)
def test_an_unknown_field_that_must_be_understood_refuses_the_pack(payload):
    assert "record 1: the field" in detail_of(payload)


def test_a_text_that_ends_in_an_underscore_is_no_such_field():
    assert decode(b'[{"n":"a_","vs":"b_"}]') == [Record(n="a_", vs="b_")]


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"", "empty"),
        (b"{}", "array"),
        (b' [{"n":"a","v":1}]', "begins with ["),
        (b"\xef\xbb\xbf[]", "begins with ["),
        (b"a0", "begins with ["),
        (b"[1]", "$[0]"),
        (b'[{"n":"a","v":1},{"n":"a","v":"1"}]', "$[1].v"),
        (b'[{"n":"a","v":true}]', "got `bool`"),
        (b'[{"n":"a","vb":1}]', "$[0].vb"),
        (b'[{"n":1,"v":1}]', "$[0].n"),
        (b'[{"n":"a","v":1}', "truncated"),
        (b'[{"n":"a","v":1}]]', "trailing"),
        (b'[{"n":"a","v":NaN}]', "malformed"),
        (b'[{"n":"a","v":1e999}]', "out of range"),
        (b'[{"n":"\xff","v":1}]', "utf-8"),
        (b'[{"n":"\\ud800","v":1}]', "end of hex escape"),
        (b'[{"n":"a","bver":"10","v":1}]', "$[0].bver"),
        (b'[{"n":"a","v":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "recursion"),
        (b"\x80\x00", "ends at byte 1 of 2"),
        (b"\x81\x01", "record 0 is no map"),
        (b"\x82\xa1\x02\x01\xa1\x02\x61a", "record 1"),
        (b"\x81\xa1\x00\x41a", "record 0"),
        (b"\x81" * 200_000, "not CBOR"),
        (b"\x9b" + b"\xff" * 8, "not CBOR"),
        (b"\x81\xa1\x00\x63\xed\xa0\x80", "not CBOR"),
        (b"\x81\xa1\x02" + cbor2.dumps(cbor2.CBORTag(30, [1, 0])), "record 0"),
        (b"\x81\xa1\x02" + cbor2.dumps(cbor2.CBORTag(35, "(((")), "record 0"),
        (bytes.fromhex("81a163736571c4821a3b9ac9ff01"), "record 0"),
    ],
)
def test_what_is_no_senml_is_refused_and_says_why(payload, told):
    assert told in detail_of(payload)


def test_values_that_refer_to_themselves_are_no_records():
    assert detail_of(bytes.fromhex("81d81ca16161d81d00"))
    assert decode(bytes.fromhex("81a300616102016178d81c81d81d00")) == [Record(n="a", v=1)]


def values(floats: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | st.integers() | floats | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    )


VALUES = values(st.floats())
JSON = values(st.floats(allow_nan=False, allow_infinity=False))
LABELS = st.sampled_from([*Record.__struct_fields__, "x", "x_"])
LOOSE = st.lists(st.dictionaries(LABELS, VALUES, max_size=4) | VALUES, max_size=4)
CBOR_LABELS = (
    st.integers(-8, 10) | LABELS | st.booleans() | st.none() | st.floats() | st.tuples(st.integers())
)
LOOSE_CBOR = st.lists(
    st.dictionaries(CBOR_LABELS, VALUES | st.binary(max_size=5), max_size=4) | VALUES, max_size=4
)


def cut_and_flip(payload: bytes, changes: list[tuple[int, int]], length: int) -> bytes:
    flipped = bytearray(payload)
    for at, byte in changes:
        if flipped:
            flipped[at % len(flipped)] = byte
    return bytes(flipped[: length % (len(flipped) + 1)])


CHANGES = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4)
PAYLOADS = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(lambda b: b"[" + b),
    st.binary(min_size=1, max_size=60).map(lambda b: bytes([0x80 | b[0] & 0x1F]) + b[1:]),
    LOOSE.map(lambda pack: json.dumps(pack).encode()),
    LOOSE_CBOR.map(cbor2.dumps),
    st.builds(cut_and_flip, st.just(RFC_CBOR), CHANGES, st.integers(0, 10_000)),
    st.builds(cut_and_flip, LOOSE_CBOR.map(cbor2.dumps), CHANGES, st.integers(0, 10_000)),
    st.builds(
        cut_and_flip, LOOSE.map(lambda pack: json.dumps(pack).encode()), CHANGES, st.integers(0, 10_000)
    ),
)


@given(PAYLOADS)
@example(bytes.fromhex("81a102c1fb7e37e43c8800759c"))
@example(bytes.fromhex("81a1d81ca0d81d0001"))
@example(bytes.fromhex("81a181a000"))
@example(b"\x81\xbf")
@example(b"\x81\xa1\x02\xc2\x5a\x00\x03\xd0\x90" + b"\xff" * 250_000)
def test_no_bytes_do_anything_but_give_records_or_be_refused(payload):
    with suppress_refusal():
        assert all(isinstance(record, Record) for record in decode(payload))
    with suppress_refusal():
        epoch, seq = identity(payload)
        assert 1 <= epoch <= LARGEST_NUMBER
        assert 1 <= seq <= LARGEST_NUMBER


NUMBERS = st.integers(1, LARGEST_NUMBER) | st.sampled_from(
    [1, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, LARGEST_NUMBER]
)
FIELDS = st.fixed_dictionaries(
    {}, optional={"bn": st.text(max_size=4), "n": st.text(max_size=4), "v": st.floats(-1e9, 1e9), "x": JSON}
)
SPACE = st.text(" \t\r\n", max_size=3)


def spaced(pack: list, spaces: list[str]) -> bytes:
    """JSON with white space wherever it may stand between the first tokens."""
    text = json.dumps(pack, separators=(",", ":"))
    head, rest = text[: text.index('"seq":') + 6], text[text.index('"seq":') + 6 :]
    tokens = ["[", "{", '"epoch"', ":", head.split(":")[1].split(",")[0], ",", '"seq"', ":"]
    assert "".join(tokens) == head
    number = rest[: next(i for i, c in enumerate(rest) if not c.isdigit())]
    written = "".join(token + space for token, space in zip([*tokens, number], spaces, strict=True))
    return (written + rest[len(number) :]).encode()


@given(NUMBERS, NUMBERS, st.lists(FIELDS, min_size=1, max_size=3), st.lists(SPACE, min_size=9, max_size=9))
def test_the_identity_is_what_a_full_decoding_finds(epoch, seq, fields, spaces):
    pack = [{"epoch": epoch, "seq": seq} | fields[0], *fields[1:]]

    for payload in (spaced(pack, spaces), json.dumps(pack).encode(), cbor2.dumps(pack)):
        first = decode(payload)[0]
        assert identity(payload) == (first.epoch, first.seq) == (epoch, seq)


@given(NUMBERS, NUMBERS, st.integers(0, 30))
def test_a_cut_pack_never_has_another_identity(epoch, seq, length):
    for whole in (
        cbor2.dumps([{"epoch": epoch, "seq": seq, 0: "a", 2: 1}]),
        json.dumps([{"epoch": epoch, "seq": seq, "n": "a", "v": 1}]).encode(),
    ):
        try:
            found = identity(whole[:length])
        except Rejected:
            continue
        assert found == (epoch, seq)


def test_an_indefinite_pack_and_long_heads_have_an_identity_too():
    body = cbor2.dumps("epoch") + b"\x1b" + struct.pack(">Q", 7) + cbor2.dumps("seq") + b"\x19\x00\x08"

    assert identity(b"\x9f\xbf" + body + b"\xff\xff") == (7, 8)
    assert identity(b"\x98\x01\xb9\x00\x02" + body) == (7, 8)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"\x80",
        b"\x81\xa0",
        b'[{"n":"a","v":1}]',
        b'[{"seq":1,"epoch":2}]',
        b'[{"n":"a","epoch":1,"seq":2}]',
        b'[{"epoch":1,"n":"a","seq":2}]',
        b'[{"epoch":0,"seq":1}]',
        b'[{"epoch":1,"seq":0}]',
        b'[{"epoch":-1,"seq":1}]',
        b'[{"epoch":1.0,"seq":1}]',
        b'[{"epoch":"1","seq":1}]',
        b'[{"epoch":9007199254740992,"seq":1}]',
        b'[{"epoch":99999999999999999999,"seq":1}]',
        b'[{"epoch":1,"seq":1',
        cbor2.dumps([{"seq": 1, "epoch": 2}]),
        cbor2.dumps([{"epoch": 1, "seq": 0}]),
        cbor2.dumps([{"epoch": 2**53, "seq": 1}]),
        cbor2.dumps([{"epoch": 1.0, "seq": 1}]),
        cbor2.dumps([{"epoch": -1, "seq": 1}]),
        cbor2.dumps([[{"epoch": 1, "seq": 1}]]),
    ],
)
def test_a_pack_without_its_numbers_first_has_no_identity(payload):
    with pytest.raises(Rejected, match="epoch and seq"):
        identity(payload)


@pytest.mark.parametrize(
    "name", ["a", "0", "urn:dev:ow:10e2073a01080063", "2001:db8::2/t", "A.b-c_d", "a" * LONGEST_NAME]
)
def test_names_of_the_rfcs_alphabet_are_names(name):
    check_name(0, name)


@pytest.mark.parametrize(
    "name", ["", "-a", "_a", ":a", "/a", ".a", "a b", "ä", "a\n", "٣", "a+b", "a" * (LONGEST_NAME + 1)]
)
def test_other_names_are_none(name):
    with pytest.raises(Rejected, match="record 7") as caught:
        check_name(7, name)
    assert len(caught.value.detail) < 300
