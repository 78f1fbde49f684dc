"""Packs -> columns: every record ends as a row or a rejection, whatever it comes with and however packs are batched."""

import json
import math
from collections import Counter

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citylab.model import DAY, HOUR, MINUTE, SECOND, Batch, Event, Position, Quality, Reason, Topic
from citylab.ports import START
from citylab.writes import Receipt
from processing.catalogue import EMPTY, Catalogue, Stream
from processing.decode import HOLDS_NUL, OpenRejection, RefusedPack, Rules, decode, take_up, take_up_packs
from processing.rejected import as_it_came

NOW = 1_700_000_000 * SECOND
T = NOW // SECOND - 100  # of most records, in s
NUMBER, TEXT, TRUTH, ANY = (
    f"http://www.opengis.net/def/observationType/OGC-OM/2.0/{kind}"
    for kind in ("OM_Measurement", "OM_CategoryObservation", "OM_TruthObservation", "OM_Observation")
)


def stream(
    name: str, number: int, kind: str = NUMBER, units=("Cel",), gateways=("gw",), features=((0, 1),)
) -> Stream:
    return Stream(name, number, kind, frozenset(units), frozenset(gateways), tuple(features))


STREAMS = [
    stream("gw/temperature", 11, units=("Cel", "°C")),
    stream("gw/state", 12, TEXT, ()),
    stream("gw/open", 13, TRUTH, ()),
    stream("gw/anything", 14, ANY, ("Cel",)),
    stream("open/data", 15, gateways=()),
    stream("two/owners", 16, gateways=("gw", "other")),
    stream("other/temperature", 17, gateways=("other",)),
    stream("gw/bus", 18, features=((NOW - 2 * DAY, 5), (NOW - DAY, 6), (NOW - HOUR, 7))),
    stream("gw/nowhere", 19, features=()),
]
CATALOGUE = Catalogue(3, STREAMS)


def event(pack, *, gateway: str = "gw", seq: int = 1, offset: int = 0, at: int = NOW) -> Event:
    value = pack if isinstance(pack, bytes) else json.dumps(pack).encode()
    headers = {"gateway": gateway, "epoch": "7", "seq": str(seq)} if seq else {"gateway": gateway}
    return Event(0, offset, gateway, value, headers, at)


def batch(*events: Event, partition: int = 0, first: int = 0) -> Batch:
    numbered = [e._replace(partition=partition, offset=first + i) for i, e in enumerate(events)]
    before = Position(first, b"before") if first else START
    return Batch(Topic.PACKS, partition, before, numbered, Position(first + len(events), b"after"))


def write_of(pack, catalogue: Catalogue = CATALOGUE, rules: Rules | None = None, **more):
    return decode([batch(event(pack, **more))], catalogue, rules or Rules())


def rejection_of(pack, catalogue: Catalogue = CATALOGUE, **more):
    write = write_of(pack, catalogue, **more)
    assert len(write.rows) == 0
    (rejection,) = write.rejections
    return rejection


def rows_of(write) -> dict[tuple, tuple]:
    """The rows by gateway, seq and record."""
    rows = write.rows
    return {
        (write.receipts[receipt].gateway, write.receipts[receipt].seq, record): (
            int(rows.datastream[i]), int(rows.time[i]), str(float(rows.number[i])), int(rows.quality[i]),
            int(rows.feature[i]), rows.json and rows.json[i], rows.parameters and rows.parameters[i],
        )
        for i, (receipt, record) in enumerate(zip(write.receipt.tolist(), write.record.tolist(), strict=True))
    }  # fmt: skip


def rejected_of(write) -> dict[tuple, tuple]:
    return {
        (write.receipts[r.receipt].gateway, write.receipts[r.receipt].seq, r.record): (r.reason, r.detail, r.content, r.payload)
        for r in write.rejections
    }  # fmt: skip


def no_json(constant: str) -> None:
    pytest.fail(f"{constant} is no JSON")


def test_a_good_pack_becomes_columns():
    write = write_of(
        [
            {"bn": "gw/", "bt": T, "n": "temperature", "u": "Cel", "v": 20.5, "quality": "good"},
            {"n": "temperature", "u": "°C", "t": 1, "v": 21},
            {"n": "temperature", "t": 2.000001, "v": -0.5, "quality": "bad", "s": 4.5},
            {"n": "state", "vs": 'ünï "x"\n'},
            {"n": "open", "vb": False, "quality": "suspect"},
            {"n": "anything", "vd": "aGk"},
        ]
    )

    rows = write.rows
    assert rows.datastream.tolist() == [11, 11, 11, 12, 13, 14]
    assert rows.time.tolist() == [T * SECOND, (T + 1) * SECOND, (T + 2) * SECOND + 1] + [T * SECOND] * 3
    assert rows.number.tolist()[:3] == [20.5, 21, -0.5]
    assert np.isnan(rows.number[3:]).all()
    assert rows.quality.tolist() == [Quality.GOOD, 0, Quality.BAD, 0, Quality.SUSPECT, 0]
    assert rows.json == [None, None, None, '"ünï \\"x\\"\\n"', "false", '"aGk"']
    assert rows.parameters == [None, None, '{"sum":4.5}', None, None, None]
    assert rows.feature.tolist() == [1] * 6
    assert (write.receipt.tolist(), write.record.tolist()) == ([0] * 6, list(range(6)))
    assert (write.rejections, write.catalogue_version) == ([], 3)
    assert write.receipts == [
        Receipt("gw", 7, 1, Topic.PACKS, 0, 0, NOW, records=6, newest=(T + 2) * SECOND + 1, untimed=0)
    ]


def test_plain_numbers_stay_plain_columns():
    rows = write_of(
        [{"n": "gw/temperature", "v": 1, "t": T}, {"n": "gw/temperature", "v": 2, "t": T + 1}]
    ).rows

    assert rows.plain


def test_nothing_is_nothing():
    for batches in ([], [batch()], [batch(event([]), event([{"bn": "a"}]), event(b"\x80"))]):
        for catalogue in (CATALOGUE, EMPTY):
            write = decode(batches, catalogue, Rules())
            assert len(write.rows) == len(write.rejections) == sum(r.records for r in write.receipts) == 0
    assert len(take_up([], CATALOGUE, Rules()).rows) == 0


@pytest.mark.parametrize(
    ("record", "reason", "told"),
    [
        ({"n": "gw/new", "v": 1}, Reason.UNKNOWN_STREAM, "no Datastream"),
        ({"n": "other/temperature", "v": 1}, Reason.NOT_YOURS, "another gateway"),
        ({"n": "gw/temperature", "vs": "warm"}, Reason.TYPE_MISMATCH, "observationType"),
        ({"n": "gw/temperature", "vb": True}, Reason.TYPE_MISMATCH, "observationType"),
        ({"n": "gw/state", "v": 1}, Reason.TYPE_MISMATCH, "observationType"),
        ({"n": "gw/open", "vd": "aGk"}, Reason.TYPE_MISMATCH, "observationType"),
        ({"n": "gw/temperature", "v": 1, "u": "K"}, Reason.UNIT_MISMATCH, "the unit 'K' is not the Datastream's, which is 'Cel' or '°C'"),
        ({"n": "gw/state", "vs": "a", "u": "K"}, Reason.UNIT_MISMATCH, "which is none"),
        ({"n": "gw/temperature", "v": 1, "t": NOW / 1e6 + 3601}, Reason.TIME_IN_FUTURE, "3600 s"),
        ({"n": "gw/temperature", "v": 1, "t": 1e300}, Reason.TIME_IN_FUTURE, "3600 s"),
        ({"n": "gw/temperature", "v": 1, "t": 3601}, Reason.TIME_IN_FUTURE, "3600 s"),
        ({"n": "gw/temperature", "v": 1, "t": 946684799.9}, Reason.TIME_IMPLAUSIBLE, "2000-01-01T00:00:00Z"),
        ({"n": "gw/temperature", "v": 1, "t": -1e300}, Reason.TIME_IMPLAUSIBLE, "2000"),
        ({"n": "gw/state", "vs": "a\0b"}, Reason.TYPE_MISMATCH, "NUL"),
        ({"n": "gw/new", "v": 1, "u": "\0"}, Reason.TYPE_MISMATCH, "NUL"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_stored_says_why(record, reason, told):
    rejection = rejection_of([{"t": T} | record])

    assert (rejection.reason, rejection.record, rejection.stream) == (reason, 0, record["n"])
    assert told in rejection.detail
    assert rejection.payload is None


@pytest.mark.parametrize("name", ["gw/temperature", "gw/new"])
@pytest.mark.parametrize(
    "fields",
    [{2: math.nan}, {2: math.inf}, {2: 1.0, 5: math.nan}, {2: 1e308, -5: 1e308}, {3: "x", 5: -math.inf},
     {2: 1.0, 6: math.nan}, {2: 1.0, 6: math.inf}, {2: 1.0, 6: -1.8e308}, {2: 1.0, 6: -math.inf}],
)  # fmt: skip
def test_what_is_not_finite_is_no_measurement_of_any_stream(name, fields):
    rejection = rejection_of(cbor2.dumps([{0: name, 6: T} | fields]))

    assert (rejection.reason, rejection.stream) == (Reason.NOT_FINITE, name)
    json.loads(rejection.content, parse_constant=no_json)


def test_the_content_of_a_rejection_is_the_record():
    rejection = rejection_of(
        [
            {
                "bn": "gw/",
                "bt": T,
                "bu": "K",
                "bv": 1,
                "n": "new",
                "t": 0.25,
                "v": 0.1,
                "s": 3,
                "quality": "suspect",
            }
        ]
    )
    assert json.loads(rejection.content) == {
        "n": "gw/new", "u": "K", "time": T * SECOND + 250_000, "v": 1.1, "s": 3, "quality": "suspect",
    }  # fmt: skip
    assert json.loads(rejection_of([{"n": "gw/new", "vb": False}]).content) == {
        "n": "gw/new",
        "time": NOW,
        "vb": False,
    }
    assert json.loads(rejection_of([{"n": "gw/new", "vd": "aGk"}]).content)["vd"] == "aGk"
    foreign = rejection_of([{"bu": "°C", "n": "gw/temperature", "v": 1, "t": T}], gateway="other")
    assert json.loads(foreign.content)["u"] == "°C"
    assert json.loads(rejection_of([{"n": "gw/temperature", "vs": "日本", "t": T}]).content)["vs"] == "日本"
    not_finite = json.loads(rejection_of(cbor2.dumps([{0: "gw/new", 2: -math.inf, 6: math.nan}])).content)
    assert not_finite == {"n": "gw/new", "v": "-inf"}
    nul = json.loads(rejection_of([{"n": "gw/new", "vs": "a\0\\u0000", "u": "\0"}]).content)
    assert (nul["vs"], nul["u"]) == ("a\ufffd\\u0000", "\ufffd")


def test_the_first_reason_stands():
    order = [
        ({"n": "other/temperature", "v": math.nan, "u": "K", "t": 1e15}, Reason.NOT_FINITE),
        ({"n": "gw/new", "vs": "x", "u": "K", "t": 1e15}, Reason.UNKNOWN_STREAM),
        ({"n": "other/temperature", "vs": "x", "u": "K", "t": 1e15}, Reason.NOT_YOURS),
        ({"n": "gw/temperature", "vs": "x", "u": "K", "t": 1e15}, Reason.TYPE_MISMATCH),
        ({"n": "gw/temperature", "v": 1, "u": "K", "t": 1e15}, Reason.UNIT_MISMATCH),
        ({"n": "gw/temperature", "v": 1, "u": "Cel", "t": 1e15}, Reason.TIME_IN_FUTURE),
    ]
    labels = {"n": 0, "u": 1, "v": 2, "vs": 3, "t": 6}
    for record, reason in order:
        pack = cbor2.dumps([{labels[label]: value for label, value in record.items()}])
        assert rejection_of(pack).reason == reason


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"", "empty"),
        (b"{}", "array"),
        ([{"n": "gw/temperature", "v": 1, "t": T}, {"n": "gw/new", "v": 1}, {"n": "ü", "v": 1}], "record 2"),
        ([{"n": "gw/temperature", "v": 1, "s": 1}, {"n": "gw/state", "vs": "a", "quality": "?"}], "record 1"),
        ([{"n": "gw/temperature", "v": 1}] * 5001, "at most 5000 records, this one 5001"),
        (b"[" + b" " * (256 * 1024) + b"]", "at most 262144 bytes, this one 262146"),
    ],
)
def test_a_malformed_pack_is_refused_whole_with_its_bytes(payload, told):
    good = [{"n": "gw/temperature", "v": 1, "t": T, "quality": "bad", "s": 2}]
    value = payload if isinstance(payload, bytes) else json.dumps(payload).encode()

    write = decode([batch(event(good, seq=1), event(value, seq=2), event(good, seq=3))], CATALOGUE, Rules())

    (rejection,) = write.rejections
    assert (rejection.receipt, rejection.record, rejection.reason) == (1, -1, Reason.MALFORMED)
    assert (rejection.payload, rejection.content) == (value, None)
    assert told in rejection.detail
    assert [r.records for r in write.receipts] == [1, 1, 1]
    assert write.receipt.tolist() == [0, 2]
    assert write.rows.quality.tolist() == [3, 3]
    assert write.rows.parameters == ['{"sum":2.0}'] * 2


def test_limits_are_kept_to_the_byte_and_the_record():
    pack = json.dumps([{"n": "gw/temperature", "v": i, "t": T + i} for i in range(5)]).encode()

    assert len(write_of(pack, rules=Rules(most_records=5, most_bytes=len(pack))).rows) == 5
    assert write_of(pack, rules=Rules(most_records=4)).rejections[0].reason == Reason.MALFORMED
    assert write_of(pack, rules=Rules(most_bytes=len(pack) - 1)).rejections[0].reason == Reason.MALFORMED


def test_the_limits_of_time_are_themselves_accepted():
    edge = (NOW + HOUR) // SECOND

    assert (
        len(
            write_of(
                [{"n": "gw/temperature", "v": 1, "t": edge}, {"n": "gw/temperature", "v": 1, "t": 946684800}]
            ).rows
        )
        == 2
    )


def test_a_record_without_an_absolute_time_gets_that_of_its_receipt():
    write = write_of(
        [{"n": "gw/temperature", "v": 1}, {"n": "gw/temperature", "v": 1, "t": -60}, {"n": "gw/new", "v": 1}]
    )

    assert write.rows.time.tolist() == [NOW, NOW - MINUTE]
    assert (write.receipts[0].untimed, write.receipts[0].newest) == (3, None)  # such a pack shows no clock


def test_the_newest_time_shows_a_clock_that_is_wrong():
    ahead = write_of(
        [{"n": "gw/temperature", "v": 1, "t": T + 366 * 86_400}, {"n": "gw/temperature", "v": 1, "t": T}]
    )

    assert ahead.receipts[0].newest == (T + 366 * 86_400) * SECOND
    assert [r.reason for r in ahead.rejections] == [Reason.TIME_IN_FUTURE]


@pytest.mark.parametrize(
    ("name", "gateway", "allowed"),
    [
        ("gw/temperature", "gw", True),
        ("gw/temperature", "other", False),
        ("gw/temperature", "nobody", False),
        ("two/owners", "gw", True),
        ("two/owners", "other", True),
        ("two/owners", "nobody", False),
        ("open/data", "nobody", True),
    ],
)
def test_a_stream_is_fed_by_its_gateways_and_by_anyone_when_it_has_none(name, gateway, allowed):
    write = write_of([{"n": name, "v": 1, "t": T}], gateway=gateway)

    assert len(write.rows) == allowed
    assert [r.reason for r in write.rejections] == ([] if allowed else [Reason.NOT_YOURS])


def test_an_observation_is_where_its_thing_was_then():
    hours = [-72, -48, -47, -24, -23, -2, -1, 0]
    write = write_of(
        [{"n": "gw/bus", "v": 1, "t": NOW // SECOND + h * 3600} for h in hours]
        + [{"n": "gw/nowhere", "v": 1, "t": T}]
    )

    assert write.rows.feature.tolist() == [5, 5, 5, 6, 6, 6, 7, 7, 0]


def test_spans_join_the_batches_of_one_partition():
    good = event([{"n": "gw/temperature", "v": 1, "t": T}])
    write = decode(
        [batch(good, good), batch(good, partition=4, first=9), batch(good, first=2)], CATALOGUE, Rules()
    )

    assert {s.partition: (s.before, s.after.offset) for s in write.spans} == {
        0: (START, 3),
        4: (Position(9, b"before"), 10),
    }
    assert [(r.partition, r.offset) for r in write.receipts] == [(0, 0), (0, 1), (4, 9), (0, 2)]


# -- whatever comes ----------------------------------------------------------------------------------------------------

NAMES = st.sampled_from([*(s.name for s in STREAMS), "gw/new", "newer"])
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "n": NAMES, "u": st.sampled_from(["Cel", "°C", "K", "", "\0"]), "v": st.floats() | st.integers(-5, 5),
        "vs": st.sampled_from(["a", "\0", "日本"]), "vb": st.booleans(), "vd": st.just(b"hi"), "s": st.floats(),
        "t": st.floats() | st.integers(-9, 9) | st.integers(T - 9, T + 9),
        "quality": st.sampled_from(["good", "suspect", "bad"]), "bt": st.just(float(T)) | st.floats(),
        "bu": st.sampled_from(["Cel", ""]), "bv": st.floats(-9, 9), "bs": st.floats(-9, 9), "bver": st.just(10),
    },
)  # fmt: skip
LABELS = {
    "bver": -1,
    "bt": -3,
    "bu": -4,
    "bv": -5,
    "bs": -6,
    "n": 0,
    "u": 1,
    "v": 2,
    "vs": 3,
    "vb": 4,
    "s": 5,
    "t": 6,
    "vd": 8,
}


def valued(fields: dict) -> dict:
    """With exactly one value or sum, unless it only sets base fields."""
    given = [label for label in ("v", "vs", "vb", "vd") if label in fields]
    fields = {label: value for label, value in fields.items() if label not in given[1:]}
    if not given and "s" not in fields and {"n", "u", "t"} & set(fields):
        fields["v"] = 1.5
    return fields


def in_cbor(records: list[dict]) -> bytes:
    return cbor2.dumps([{LABELS.get(label, label): value for label, value in r.items()} for r in records])


RECORDS = st.lists(FIELDS.map(valued), min_size=1, max_size=6)
PACKS = st.one_of(
    RECORDS.map(
        lambda records: in_cbor([{"n": "gw/temperature", "v": 1, "t": T}, *records])
    ),  # often malformed: no name
    RECORDS.map(lambda records: in_cbor([{"n": "gw/state"} | record for record in records])),
    st.binary(max_size=5),
)
EVENTS = st.lists(st.tuples(PACKS, st.sampled_from(["gw", "other", "nobody"])), max_size=6).map(
    lambda packs: [event(pack, gateway=gateway, seq=i + 1) for i, (pack, gateway) in enumerate(packs)]
)


@given(EVENTS)
def test_every_record_ends_as_a_row_or_a_rejection(events):
    write = decode([batch(*events)], CATALOGUE, Rules())

    ended = Counter(write.receipt.tolist()) + Counter(r.receipt for r in write.rejections)
    assert [r.records for r in write.receipts] == [ended[i] for i in range(len(events))]
    places = [
        *zip(write.receipt.tolist(), write.record.tolist(), strict=True),
        *((r.receipt, r.record) for r in write.rejections),
    ]
    assert len(places) == len(set(places))
    assert np.isfinite(write.rows.number).tolist() == [
        not (write.rows.json and write.rows.json[i]) for i in range(len(write.rows))
    ]
    for text in [
        *(write.rows.json or []),
        *(write.rows.parameters or []),
        *(r.content for r in write.rejections),
    ]:
        if text is not None:
            json.loads(text, parse_constant=no_json)
            assert "\\u0000" not in text.replace("\\\\", "")


@given(EVENTS)
def test_many_packs_at_once_are_as_one_by_one(events):
    at_once = decode([batch(*events[:2]), batch(*events[2:], first=2)], CATALOGUE, Rules())
    one_by_one = [decode([batch(e)], CATALOGUE, Rules()) for e in events]

    assert rows_of(at_once) == {k: v for write in one_by_one for k, v in rows_of(write).items()}
    assert rejected_of(at_once) == {k: v for write in one_by_one for k, v in rejected_of(write).items()}
    assert [r._replace(offset=0) for r in at_once.receipts] == [
        r for write in one_by_one for r in write.receipts
    ]


@given(EVENTS, st.sets(st.sampled_from([s.name for s in STREAMS])))
def test_what_is_taken_up_ends_as_if_its_stream_had_been_known(events, late):
    early = Catalogue(1, [s for s in STREAMS if s.name not in late])
    first = decode([batch(*events)], early, Rules())
    kept = [
        OpenRejection(i, first.receipts[r.receipt]._replace(records=1), r.record, json.loads(r.content))
        for i, r in enumerate(first.rejections)
        if r.reason == Reason.UNKNOWN_STREAM
    ]

    second = take_up(kept, CATALOGUE, Rules())

    whole = decode([batch(*events)], CATALOGUE, Rules())
    closed = {
        (kept_.receipt.gateway, kept_.receipt.seq, kept_.record)
        for kept_ in kept
        if kept_.id in second.closes
    }
    assert rows_of(first) | rows_of(second) == rows_of(whole)
    assert {k: v for k, v in rejected_of(first).items() if k not in closed} | rejected_of(
        second
    ) == rejected_of(whole)
    assert len(second.rows) + len(second.rejections) == len(second.receipts) == len(second.closes)
    assert take_up(kept, early, Rules()).closes == []


@given(EVENTS)
def test_what_is_taken_up_in_vain_is_rejected_as_before(events):
    first = decode([batch(*events)], CATALOGUE, Rules())
    records = [r for r in first.rejections if r.content]
    packs = [r for r in first.rejections if r.payload is not None]
    kept = [
        OpenRejection(
            i, first.receipts[r.receipt]._replace(records=1), r.record,
            as_it_came(json.loads(r.content), r.detail, None), asked=True,
        )
        for i, r in enumerate(records)
    ]  # fmt: skip
    whole = [
        RefusedPack(i, Topic.PACKS, events[r.receipt]._replace(offset=r.receipt)) for i, r in enumerate(packs)
    ]

    again, packs_again = take_up(kept, CATALOGUE, Rules()), take_up_packs(whole, CATALOGUE, Rules())

    assert len(again.rows) == len(packs_again.rows) == 0
    found = sorted(again.rejections, key=lambda r: r.receipt)
    assert [r._replace(receipt=0) for r in found] == [r._replace(receipt=0) for r in records]
    assert [r.receipt for r in found] == again.closes == [one.id for one in kept]
    assert [r._replace(receipt=0) for r in packs_again.rejections] == [r._replace(receipt=0) for r in packs]
    assert packs_again.receipts == [first.receipts[r.receipt] for r in packs]
    assert (packs_again.closes, packs_again.spans) == ([one.id for one in whole], ())


def test_a_pack_that_was_too_large_is_taken_up_under_a_wider_limit():
    pack = [{"n": "gw/temperature", "t": T + i, "v": i} for i in range(3)]
    refused = RefusedPack(5, Topic.PACKS, event(pack, seq=4, offset=9))

    narrow = take_up_packs([refused], CATALOGUE, Rules(most_records=2))
    wide = take_up_packs([refused], CATALOGUE, Rules(most_records=3))

    assert [(r.reason, r.record) for r in narrow.rejections] == [(Reason.MALFORMED, -1)]
    assert wide.rows.number.tolist() == [0, 1, 2]
    assert wide.receipts[0] == Receipt("gw", 7, 4, Topic.PACKS, 0, 9, NOW, 3, (T + 2) * SECOND)
    assert (wide.rejections, wide.closes, wide.spans) == ([], [5], ())


def test_a_conflicts_record_is_as_it_came():
    content = {"datastream": 11, "time": 5, "value": True, "quality": "good", "parameters": {"sum": 2.0}}

    assert as_it_came(content, "", "gw/open") == {
        "n": "gw/open",
        "time": 5,
        "vb": True,
        "quality": "good",
        "s": 2.0,
    }
    assert as_it_came({"datastream": 1, "time": 5, "value": 2}, "", None) == {"n": "", "time": 5, "v": 2}


def test_a_text_whose_nul_was_replaced_gets_it_back():
    content = {"n": "a\ufffd", "vs": "x\ufffd"}

    assert as_it_came(content, HOLDS_NUL, None) == {"n": "a\ufffd", "vs": "x\0"}
    assert as_it_came(content, "another", None) == content
