import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citylab.model import SECOND, Quality, Reading
from citylab.senml import decode, identity
from edge.packing import encode, encode_all, why_not

T0 = 1_767_225_600 * SECOND


def resolved(payload: bytes) -> list[Reading]:
    """What the platform reads: base fields folded in, times rounded to whole microseconds (RFC 8428 §4.6)."""
    found = []
    base = decode(payload)[0]
    for record in decode(payload):
        value = next(x for x in (record.v, record.vs, record.vb) if x is not None)
        name = (base.bn or "") + (record.n or "")
        time = round(((base.bt or 0) + (record.t or 0)) * SECOND)
        quality = Quality[record.quality.upper()] if record.quality else Quality.NONE
        found.append(Reading(name, time, value, record.u or base.bu, quality))
    return found


names = st.from_regex(r"[a-z][a-z0-9]{0,3}([/:][a-z0-9]{1,4}){0,3}", fullmatch=True)
readings = st.lists(
    st.builds(
        Reading,
        name=names,
        time=st.integers(2**28 * SECOND, 4_000_000_000 * SECOND),
        value=st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text(max_size=5)),
        unit=st.one_of(st.none(), st.sampled_from(["Cel", "%RH"])),
        quality=st.sampled_from(Quality),
    ),
    min_size=1,
    max_size=20,
)


@given(readings, st.sampled_from(["json", "cbor"]), st.integers(1, 2**53 - 1), st.integers(1, 2**53 - 1))
def test_the_platform_reads_what_was_measured(readings, form, epoch, seq):
    payload = encode(readings, epoch=epoch, seq=seq, form=form)

    assert resolved(payload) == readings
    assert identity(payload) == (epoch, seq)


@given(st.integers(1_600_000_000 * SECOND, 2_000_000_000 * SECOND), st.integers(0, 3_600 * SECOND))
def test_times_keep_their_microseconds(first, later):
    pack = [Reading("a", first, 1.0), Reading("a", first + later, 2.0)]

    assert [reading.time for reading in resolved(encode(pack, epoch=1, seq=1))] == [first, first + later]


def test_numbers_come_first_and_what_is_common_once():
    pack = [Reading("lamp-7/no2", T0, 41.5, "ug/m3"), Reading("lamp-7/o3", T0 + 1_500_000, 3.0, "ug/m3")]

    payload = encode(pack, epoch=7, seq=12)

    assert payload == (
        b'[{"epoch":7,"seq":12,"bn":"lamp-7/","bt":1767225600,"bu":"ug/m3","n":"no2","v":41.5},'
        b'{"n":"o3","v":3.0,"t":1.5}]'
    )


def test_cbor_uses_the_labels_of_the_rfc():
    payload = encode([Reading("a", T0, 41.5, "Cel", Quality.BAD)], epoch=7, seq=12, form="cbor")

    assert cbor2.loads(payload) == [
        {"epoch": 7, "seq": 12, -2: "a", -3: 1767225600, -4: "Cel", 2: 41.5, "quality": "bad"}
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_json_has_no_word_for_makes_it_cbor(value):
    payload = encode([Reading("a", T0, value), Reading("a", T0 + 1, 2.0)], epoch=1, seq=1, form="json")

    assert str(decode(payload)[0].v) == str(value)


def test_packs_keep_within_their_limits():
    readings = [Reading("a", T0 + n, "x" * 1_000) for n in range(10)]

    packs = encode_all(
        readings, epoch=1, seq=5, form="json", most_records=8, most_bytes=4_000, refused=lambda *_: None
    )

    assert all(len(pack) <= 4_000 for pack in packs)
    assert [identity(pack) for pack in packs] == [(1, 5 + n) for n in range(len(packs))]
    assert [reading for pack in packs for reading in resolved(pack)] == readings


def test_a_reading_larger_than_a_pack_is_refused_and_harms_no_other():
    refused = []
    readings = [Reading("a", T0, 1.0), Reading("a", T0 + 1, "x" * 5_000), Reading("a", T0 + 2, 3.0)]

    packs = encode_all(
        readings, epoch=1, seq=1, form="json", most_records=200, most_bytes=4_000,
        refused=lambda reading, why: refused.append((reading, why)),
    )  # fmt: skip

    assert [reading for pack in packs for reading in resolved(pack)] == [readings[0], readings[2]]
    assert refused == [(readings[1], "its value is larger than a pack may be (4000 bytes)")]


@pytest.mark.parametrize("name", ["", "/a", "a b", "ä", "a\n"])
def test_a_name_that_would_have_its_pack_refused_is_found(name):
    assert why_not(Reading(name, T0, 1.0))


def test_a_time_that_would_be_taken_for_relative_is_found():
    assert why_not(Reading("a", 2**28 * SECOND - 1, 1.0))
    assert why_not(Reading("a", 2**28 * SECOND, 1.0)) is None


def test_the_first_record_stays_valid_json_for_others():
    payload = encode([Reading("a", T0, True)], epoch=1, seq=1)

    assert msgspec.json.decode(payload) == [{"epoch": 1, "seq": 1, "bn": "a", "bt": 1767225600, "vb": True}]
