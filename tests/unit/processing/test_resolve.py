"""Resolved records (RFC 8428 §4.5, §4.6): base fields folded in, times rounded to whole microseconds."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from citylab.errors import Rejected
from citylab.model import Quality
from citylab.senml import decode
from processing.catalogue import EMPTY
from processing.resolve import Columns, resolve, times

RECEIVED = 1_700_000_000_123_456
OW = "urn:dev:ow:10e2073a01080063"


def resolved(pack: str | bytes | list) -> list[dict]:
    """The records of a pack in the shape of the RFC's §5.1.4; a relative time as `now`, in µs after the receipt."""
    columns = Columns()
    payload = (
        json.dumps(pack).encode()
        if isinstance(pack, list)
        else pack.encode()
        if isinstance(pack, str)
        else pack
    )
    resolve(decode(payload), EMPTY, columns)
    moments = columns.times(np.full(len(columns), RECEIVED))
    records = []
    for row in range(len(columns)):
        name, unit = columns.unmatched[row]
        time = int(moments.time[row])
        label, value = columns.other.get(row, ("v", columns.number[row]))
        fields = {
            "n": name, "u": unit, label: value, "s": columns.total.get(row),
            "t": None if moments.relative[row] else time, "now": time - RECEIVED if moments.relative[row] else None,
        }  # fmt: skip
        records.append({key: x for key, x in fields.items() if x is not None})
    return records


def refusal(pack: list) -> str:
    with pytest.raises(Rejected) as caught:
        resolved(pack)
    assert caught.value.reason == "malformed"
    return caught.value.detail


def test_5_1_1_single_data_point():
    assert resolved('[{"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1}]') == [
        {"n": OW, "u": "Cel", "v": 23.1, "now": 0}
    ]


def test_5_1_2_multiple_data_points_now():
    pack = """[
  {"bn":"urn:dev:ow:10e2073a01080063:","n":"voltage","u":"V","v":120.1},
  {"n":"current","u":"A","v":1.2}
]"""
    assert resolved(pack) == [
        {"n": f"{OW}:voltage", "u": "V", "v": 120.1, "now": 0},
        {"n": f"{OW}:current", "u": "A", "v": 1.2, "now": 0},
    ]


def test_5_1_2_multiple_data_points_with_a_base_time_and_an_older_version():
    pack = """[
     {"bn":"urn:dev:ow:10e2073a0108006:","bt":1.276020076001e+09,
      "bu":"A","bver":5,
      "n":"voltage","u":"V","v":120.1},
     {"n":"current","t":-5,"v":1.2},
     {"n":"current","t":-4,"v":1.3},
     {"n":"current","v":1.7}
   ]"""
    name = "urn:dev:ow:10e2073a0108006"
    assert resolved(pack) == [
        {"n": f"{name}:voltage", "u": "V", "v": 120.1, "t": 1276020076_001000},
        {"n": f"{name}:current", "u": "A", "v": 1.2, "t": 1276020071_001000},
        {"n": f"{name}:current", "u": "A", "v": 1.3, "t": 1276020072_001000},
        {"n": f"{name}:current", "u": "A", "v": 1.7, "t": 1276020076_001000},
    ]


def test_5_1_3_multiple_measurements_are_5_1_4():
    pack = """[
     {"bn":"urn:dev:ow:10e2073a01080063","bt":1.320067464e+09,
      "bu":"%RH","v":20},
     {"u":"lon","v":24.30621},
     {"u":"lat","v":60.07965},
     {"t":60,"v":20.3},
     {"u":"lon","t":60,"v":24.30622},
     {"u":"lat","t":60,"v":60.07965},
     {"t":120,"v":20.7},
     {"u":"lon","t":120,"v":24.30623},
     {"u":"lat","t":120,"v":60.07966},
     {"u":"%EL","t":150,"v":98},
     {"t":180,"v":21.2},
     {"u":"lon","t":180,"v":24.30628},
     {"u":"lat","t":180,"v":60.07967}
   ]"""
    resolved_data = """[
     {"n":"urn:dev:ow:10e2073a01080063","u":"%RH","t":1.320067464e+09, "v":20},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lon","t":1.320067464e+09, "v":24.30621},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lat","t":1.320067464e+09, "v":60.07965},
     {"n":"urn:dev:ow:10e2073a01080063","u":"%RH","t":1.320067524e+09, "v":20.3},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lon","t":1.320067524e+09, "v":24.30622},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lat","t":1.320067524e+09, "v":60.07965},
     {"n":"urn:dev:ow:10e2073a01080063","u":"%RH","t":1.320067584e+09, "v":20.7},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lon","t":1.320067584e+09, "v":24.30623},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lat","t":1.320067584e+09, "v":60.07966},
     {"n":"urn:dev:ow:10e2073a01080063","u":"%EL","t":1.320067614e+09, "v":98},
     {"n":"urn:dev:ow:10e2073a01080063","u":"%RH","t":1.320067644e+09, "v":21.2},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lon","t":1.320067644e+09, "v":24.30628},
     {"n":"urn:dev:ow:10e2073a01080063","u":"lat","t":1.320067644e+09, "v":60.07967}
   ]"""
    expected = [record | {"t": int(record["t"]) * 1_000_000} for record in json.loads(resolved_data)]
    assert resolved(pack) == expected
    assert resolved(resolved_data) == expected  # what is resolved stays as it is


def test_5_1_5_multiple_data_types():
    pack = """[
    {"bn":"urn:dev:ow:10e2073a01080063:","n":"temp","u":"Cel","v":23.1},
    {"n":"label","vs":"Machine Room"},
    {"n":"open","vb":false},
    {"n":"nfv-reader","vd":"aGkgCg"}
  ]"""
    assert resolved(pack) == [
        {"n": f"{OW}:temp", "u": "Cel", "v": 23.1, "now": 0},
        {"n": f"{OW}:label", "vs": "Machine Room", "now": 0},
        {"n": f"{OW}:open", "vb": False, "now": 0},
        {"n": f"{OW}:nfv-reader", "vd": "aGkgCg", "now": 0},
    ]


def test_5_1_6_a_base_name_changes_and_the_base_time_stays():
    pack = """[
     {"bn":"2001:db8::2/","bt":1.320078429e+09,
      "n":"temperature","u":"Cel","v":25.2},
     {"n":"humidity","u":"%RH","v":30},
     {"bn":"2001:db8::1/","n":"temperature","u":"Cel","v":12.3},
     {"n":"humidity","u":"%RH","v":67}
   ]"""
    t = 1320078429_000000
    assert resolved(pack) == [
        {"n": "2001:db8::2/temperature", "u": "Cel", "v": 25.2, "t": t},
        {"n": "2001:db8::2/humidity", "u": "%RH", "v": 30, "t": t},
        {"n": "2001:db8::1/temperature", "u": "Cel", "v": 12.3, "t": t},
        {"n": "2001:db8::1/humidity", "u": "%RH", "v": 67, "t": t},
    ]


def test_5_1_7_a_record_of_base_fields_alone_is_no_measurement():
    pack = """[
     {"bn":"urn:dev:ow:10e2073a01080063:"},
     {"n":"temp","u":"Cel","v":23.1},
     {"n":"heat","u":"/","v":1},
     {"n":"fan","u":"/","v":0}
   ]"""
    assert resolved(pack) == [
        {"n": f"{OW}:temp", "u": "Cel", "v": 23.1, "now": 0},
        {"n": f"{OW}:heat", "u": "/", "v": 1, "now": 0},
        {"n": f"{OW}:fan", "u": "/", "v": 0, "now": 0},
    ]


def test_5_1_7_a_base_unit_and_a_time_in_the_future():
    pack = """[
     {"bt":1.320078429e+09,"bu":"/","n":"2001:db8::3","v":0.5},
     {"n":"2001:db8::4","v":0.5},
     {"n":"2001:db8::3","t":0.1,"v":0},
     {"n":"2001:db8::4","t":0.1,"v":0}
   ]"""
    assert [(r["n"], r["u"], r["v"], r["t"]) for r in resolved(pack)] == [
        ("2001:db8::3", "/", 0.5, 1320078429_000000),
        ("2001:db8::4", "/", 0.5, 1320078429_000000),
        ("2001:db8::3", "/", 0, 1320078429_100000),
        ("2001:db8::4", "/", 0, 1320078429_100000),
    ]


def test_a_base_value_is_added_to_the_numbers_that_follow_and_to_nothing_else():
    pack = [
        {"n": "a", "v": 1}, {"bv": 20, "n": "b", "v": 0.5}, {"n": "c"}, {"n": "d", "vs": "x"}, {"n": "e", "vb": True},
        {"bv": -1, "n": "f", "v": 1}, {"bv": 7}, {"t": 1, "n": "g"},
    ]  # fmt: skip
    values = [(r["n"], r.get("v", r.get("vs", r.get("vb")))) for r in resolved(pack)]

    assert values == [("a", 1), ("b", 20.5), ("c", 20), ("d", "x"), ("e", True), ("f", 0), ("g", 7)]


def test_a_sum_beside_a_value_is_kept_with_it_and_one_without_is_the_result():
    pack = [
        {"n": "a", "v": 1, "s": 2}, {"n": "b", "s": 2}, {"bs": 10, "n": "c", "s": 2}, {"n": "d", "v": 1},
        {"n": "e"}, {"n": "f", "vs": "x", "s": 0.5}, {"bs": 0, "n": "g", "s": 3, "v": 0},
    ]  # fmt: skip
    values = [(r["n"], r.get("v", r.get("vs")), r.get("s")) for r in resolved(pack)]

    assert values == [
        ("a", 1, 2), ("b", 2, None), ("c", 12, None), ("d", 1, 10), ("e", 10, None), ("f", "x", 10.5), ("g", 0, 3),
    ]  # fmt: skip


def test_a_base_value_makes_a_value_beside_the_sum():
    assert resolved([{"bv": 5, "n": "a", "s": 2}]) == [{"n": "a", "v": 5, "s": 2, "now": 0}]


def test_an_empty_unit_is_none_and_a_records_own_goes_before_the_base():
    pack = [
        {"bu": "V", "n": "a", "v": 1},
        {"n": "b", "u": "A", "v": 1},
        {"n": "c", "u": "", "v": 1},
        {"bu": "", "n": "d", "v": 1},
    ]

    assert [r.get("u") for r in resolved(pack)] == ["V", "A", "V", None]


def test_a_name_may_be_missing_where_there_is_a_base_name():
    assert [r["n"] for r in resolved([{"bn": "a", "v": 1}, {"n": "", "v": 1}, {"n": "b", "v": 1}])] == [
        "a",
        "a",
        "ab",
    ]
    assert "neither a name nor a base name" in refusal([{"v": 1}])


@pytest.mark.parametrize(
    ("pack", "told"),
    [
        ([{"n": "a", "v": 1}, {"n": "a", "t": 1}], "record 1 has neither a value nor a sum"),
        ([{"n": "a", "v": 1, "vs": "x"}], "record 0 has more than one value: v, vs"),
        ([{"n": "a", "vb": True, "vd": "aGk", "s": 1}], "record 0 has more than one value: vb, vd"),
        ([{"n": "a", "v": 1}, {"bn": "ü", "v": 1}], "record 1: a stream name"),
        ([{"bn": "x" * 1000, "n": "y" * 1000, "v": 1}], "at most 1024"),
        ([{"n": "a", "v": 1, "quality": "fine"}], "not 'fine'"),
        ([{"bver": 11, "n": "a", "v": 1}], "record 0: SenML versions 1 to 10 are understood, not 11"),
        ([{"bver": 0, "n": "a", "v": 1}], "not 0"),
        ([{"bver": 5, "n": "a", "v": 1}, {"bver": 6, "n": "a", "v": 1}], "record 1: all records"),
        ([{"n": "a", "v": 1}, {"bver": 5, "n": "a", "v": 1}], "record 1: all records"),
    ],
)
def test_what_breaks_a_rule_is_refused_and_says_where(pack, told):
    assert told in refusal(pack)


def test_one_version_named_twice_is_one_version():
    assert len(resolved([{"bver": 5, "n": "a", "v": 1}, {"bver": 5, "n": "b", "v": 1}])) == 2
    assert len(resolved([{"n": "a", "v": 1}, {"bver": 10, "n": "b", "v": 1}])) == 2


def test_qualities_are_read():
    columns = Columns()
    pack = [{"n": n, "v": 1, "quality": q} for n, q in (("a", "good"), ("b", "suspect"), ("c", "bad"))]
    resolve(decode(json.dumps([*pack, {"n": "d", "v": 1}]).encode()), EMPTY, columns)

    assert columns.quality == {0: Quality.GOOD, 1: Quality.SUSPECT, 2: Quality.BAD}


def test_a_pack_that_is_cut_leaves_nothing_behind():
    good = decode(b'[{"bt":1600000000,"n":"a","v":1},{"n":"b","vs":"x","s":1,"quality":"bad"}]')
    columns, alone = Columns(), Columns()
    resolve(good, EMPTY, columns)
    with pytest.raises(Rejected):
        resolve(
            decode(
                b'[{"bt":1.5e9,"n":"c","v":1,"quality":"good"},{"bt":2,"n":"d","vs":"y","s":1},{"n":"e"}]'
            ),
            EMPTY,
            columns,
        )
    columns.cut(2)
    resolve(good, EMPTY, alone)
    assert columns == alone

    resolve(decode(b'[{"n":"f","v":1}]'), EMPTY, columns)
    assert columns.times(np.full(3, RECEIVED)).time.tolist() == [
        1600000000_000000,
        1600000000_000000,
        RECEIVED,
    ]


# -- times -------------------------------------------------------------------------------------------------------------


def micros(base: float, time: float) -> int:
    return int(times(np.array([base]), np.array([time]), np.array([RECEIVED])).time[0])


def exactly(base: float, time: float) -> int:
    """base + time rounded to whole µs, without a float in between."""
    total = Fraction(base) + Fraction(time)
    return round(total * 1_000_000) + (RECEIVED if total < 2**28 else 0)


INSTANTS = st.integers(946_684_800_000_000, 4_102_444_800_000_000)  # µs from 2000 to 2100
SPANS = st.integers(-(10**13), 10**13)


@given(INSTANTS, SPANS)
@example(4_102_444_799_999_999, 4_567_891)
def test_an_instant_written_as_base_and_time_in_whole_micros_comes_back(instant, span):
    assert micros((instant - span) / 1e6, span / 1e6) == instant


@given(INSTANTS, st.floats(-4e9, 4e9))
def test_an_instant_split_anywhere_comes_back(instant, time):
    base = float(Fraction(instant, 1_000_000) - Fraction(time))  # the nearest float64 to what is left

    assert abs(micros(base, time) - instant) <= (0 if abs(base) < 2**32 and abs(time) < 2**32 else 1)


@given(INSTANTS)
def test_an_instant_as_one_number_comes_back(instant):
    assert micros(0, instant / 1e6) == micros(instant / 1e6, 0) == instant


@given(st.floats(-1e10, 1e10), st.floats(-1e10, 1e10))
@example(2.0**28 - 1, 1.0)
@example(2.0**28, -5e-7)
@example(-0.0000015, 0)
def test_the_sum_is_rounded_once(base, time):
    assert abs(micros(base, time) - exactly(base, time)) <= 1 or base + time == 2**28
    total = Fraction(base) + Fraction(time)
    if abs(total * 1_000_000 % 1 - Fraction(1, 2)) > Fraction(1, 1000) and base + time != 2**28:
        assert micros(base, time) == exactly(base, time)


def test_below_2_to_the_28_a_time_is_relative_to_the_receipt_and_may_be_negative():
    assert micros(0, 0) == RECEIVED
    assert micros(0, -60.5) == RECEIVED - 60_500_000
    assert micros(0, 2**28 - 1) == RECEIVED + (2**28 - 1) * 1_000_000
    assert micros(0, 2**28) == 2**28 * 1_000_000
    assert micros(2**28, -1) == RECEIVED + (2**28 - 1) * 1_000_000
    assert micros(-1e9, 0) == RECEIVED - 10**15


@given(st.floats(), st.floats())
@example(1e300, -1e300)
@example(1e300, -1e13)
@example(1.8e308, 1.8e308)
@example(float("nan"), 0)
@example(float("-inf"), float("inf"))
def test_no_time_is_too_far_or_too_odd(base, time):
    moments = times(np.array([base]), np.array([time]), np.array([RECEIVED]))

    assert moments.finite[0] == np.isfinite(base + time)
    if moments.finite[0] and abs(base + time) >= 9e12:
        assert abs(moments.time[0]) >= 8.9e18
        assert (moments.time[0] > 0) == (base + time > 0)
