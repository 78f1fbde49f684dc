"""Whatever a gateway sends: each record that cannot be stored is kept with its reason, and nobody else suffers."""

import math
import random
import struct
from collections import Counter
from collections.abc import Iterator

import cbor2
import msgspec
import pytest
from city import City
from city_devices import MEASUREMENT, T0, labelled, stream, thing

from citylab.model import LARGEST_NUMBER
from citylab.times import now

YEAR = 365 * 86_400  # s
LARGEST_PACK, MOST_RECORDS = 256 * 1024, 5_000  # the settings' defaults


@pytest.fixture(autouse=True)
def witness(city: City) -> Iterator[None]:
    """Another gateway, whose reading of after the test arrives, through services that none of it has ended."""
    services = city.pids()
    yield
    name = "witness/a"
    city.descriptor("witness", thing("witness", stream(name)))
    moment = now()
    city.pack("witness", {"n": name, "t": moment / 1e6, "v": 1})
    city.until(
        lambda: city.fetch(
            "SELECT 1 FROM latest l JOIN datastreams d ON d.id = l.datastream_id"
            " WHERE d.stream_name = %s AND l.phenomenon_time >= to_timestamp(%s)",
            name,
            moment / 1e6 - 0.001,
        ),
        "the witness's reading is stored",
    )
    assert city.pids() == services, f"a service has ended\n{city.story()}"


@pytest.fixture
def good(city: City, gateway: str) -> str:
    """A stream that takes numbers in ug/m3."""
    city.register(gateway, thing(gateway, stream(f"{gateway}/good")))
    return f"{gateway}/good"


# Each reason of the contracts' table: a record that earns it, and what its detail says.
BAD_RECORDS = {
    "unknown-stream": ({"n": "nobody/knows"}, "no Datastream has this stream name"),
    "not-yours": ({"n": "{}-other/a"}, "another gateway"),
    "type-mismatch": ({"vs": "a lot", "v": None}, "observationType"),
    "not-finite": ({"v": math.nan}, "NaN"),
    "type-mismatch-nul": ({"vs": "a\0b", "v": None}, "NUL"),
    "type-mismatch-nul-in-unit": ({"u": "\0"}, "NUL"),
    "unit-mismatch": ({"u": "Cel"}, "'Cel' is not the Datastream's, which is 'ug/m3'"),
    "time-in-future": ({"t": now() // 1_000_000 + YEAR}, "3600 s after its receipt"),
    "time-implausible": ({"t": 900_000_000}, "before 2000-01-01"),
    "conflict": ({"t": T0, "v": 2.0}, "the first stands"),
}


@pytest.mark.parametrize("numbered", [True, False], ids=["numbered", "unnumbered"])
@pytest.mark.parametrize("reason", BAD_RECORDS)
def test_a_bad_record_is_kept_with_its_reason_and_its_pack_does_not_wait(
    city, gateway, good, reason, numbered
):
    other = f"{gateway}-other"
    city.register(other, thing(other, stream(f"{other}/a")))
    fields, detail = BAD_RECORDS[reason]
    bad = {"n": good, "t": T0 + 1, "v": 7.5} | fields
    bad = {k: v.replace("{}", gateway) if isinstance(v, str) else v for k, v in bad.items() if v is not None}
    epoch = 11 if numbered else 0

    city.pack(
        gateway,
        {"n": good, "t": T0, "v": 1.0}, bad, {"n": good, "t": T0 + 2, "v": 3.0},
        epoch=epoch, seq=1, cbor=reason == "not-finite",
    )  # fmt: skip

    city.until(lambda: city.results(good) == [1, 3], "the good records are stored")
    (rejection,) = city.rejections(gateway)
    reason = reason.removesuffix("-in-unit").removesuffix("-nul")
    assert (rejection.record, rejection.reason, rejection.open) == (1, reason, True)
    assert detail in rejection.detail
    assert rejection.payload is None
    label = "vs" if "vs" in bad else "v"
    sent = "nan" if reason == "not-finite" else str(bad[label]).replace("\0", "\ufffd")
    assert str(rejection.content.get(label, rejection.content.get("value"))) == sent
    ledger = city.ledger(gateway, epoch)
    assert (ledger["records"], ledger["stored"], ledger["rejected"]) == (3, 2, 1)
    assert ledger["rejected_by_reason"] == {reason: 1}


def test_the_value_that_is_stored_twice_alike_is_no_conflict(city, gateway, good):
    city.pack(gateway, {"n": good, "t": T0, "v": 6})
    city.pack(gateway, {"n": good, "t": T0, "v": 6.0}, {"n": good, "t": T0 + 1, "v": 1})

    city.until(lambda: city.results(good) == [6, 1], "both are stored once")
    assert city.rejections(gateway) == []
    assert city.ledger(gateway)["duplicates"] == 1


ONE = {"n": "a", "v": 1}
DEEP = 100_000
MALFORMED = {
    "empty": (b"", "empty"),
    "text": (b"21.4", "array"),
    "object": (b'{"n":"a","v":1}', "array"),
    "cut": (b'[{"n":"a","v":1}', "truncated"),
    "no-map": (b"[1]", "object"),
    "no-map-in-cbor": (cbor2.dumps([1]), "record 0"),
    "noise": (random.Random(7).randbytes(2_000), "array"),
    "noise-like-cbor": (b"\x85" + random.Random(8).randbytes(2_000), "CBOR"),
    "after-the-end": (cbor2.dumps([labelled(ONE)]) * 2, "ends at byte"),
    "not-utf-8": (b'[{"n":"a","vs":"\xff"}]', "utf-8"),
    "lone-surrogate": (b'[{"n":"a","vs":"\\ud800"}]', ""),
    "nul-in-name": (b'[{"n":"a\\u0000","v":1}]', "stream name"),
    "nan-in-json": (b'[{"n":"a","v":NaN}]', "malformed"),
    "too-large-a-number": (b'[{"n":"a","v":1e999}]', "out of range"),
    "truth-for-a-number": (b'[{"n":"a","v":true}]', "bool"),
    "deep": (b"[" * DEEP, "$[0]"),
    "deep-below": (b'[{"n":"a","v":1,"x":' + b"[" * DEEP + b"]" * DEEP + b"}]", "recursion"),
    "deep-cbor": (b"\x81" * DEEP + b"\x00", "depth"),
    "two-values": (b'[{"n":"a","v":1,"vs":"b"}]', "record 0 has more than one value"),
    "no-value": (b'[{"n":"a","v":1},{"n":"b"}]', "record 1 has neither a value nor a sum"),
    "must-be-understood": (b'[{"n":"a","v":1,"lock_":1}]', "lock_"),
    "another-version": (b'[{"bver":11,"n":"a","v":1}]', "not 11"),
    "no-name": (b'[{"v":1}]', "neither a name nor a base name"),
    "another-alphabet": ('[{"n":"Größe","v":1}]'.encode(), "Größe"),
    "no-quality": (b'[{"n":"a","v":1,"quality":"fine"}]', "good, suspect or bad"),
    "too-many": (msgspec.json.encode([ONE] * (MOST_RECORDS + 1)), "5000 records, this one 5001"),
    "too-large": (b"[" + b" " * LARGEST_PACK + b"]", "262146 bytes are more than the 262144"),
}  # fmt: skip


@pytest.mark.parametrize("payload", MALFORMED)
def test_a_pack_that_is_no_senml_is_refused_whole_and_kept(city, gateway, payload):
    pack, detail = MALFORMED[payload]

    city.publish(f"{gateway}/packs", pack)

    (rejection,) = city.until(lambda: city.rejections(gateway), "the pack is rejected")
    assert (rejection.record, rejection.reason) == (-1, "malformed")
    assert detail in rejection.detail
    assert rejection.payload == pack[:LARGEST_PACK]
    assert city.ledger(gateway)["rejected_by_reason"] == {"malformed": 1}


@pytest.mark.parametrize(
    "first",
    [
        b'"epoch":0,"seq":1', b'"epoch":1,"seq":0', b'"seq":1,"epoch":1', b'"epoch":1', b'"epoch":-1,"seq":1',
        b'"epoch":1.5,"seq":1', b'"epoch":"1","seq":1', b'"epoch":%d,"seq":1' % (LARGEST_NUMBER + 1),
        b'"n":"a","epoch":1,"seq":1',
    ],
)  # fmt: skip
def test_numbers_that_are_none_are_refused(city, gateway, first):
    city.publish(f"{gateway}/packs/numbered", b'[{%b,"n":"a","v":1}]' % first)

    (rejection,) = city.until(lambda: city.rejections(gateway), "the pack is rejected")
    assert rejection.reason == "malformed"
    assert "epoch and seq" in rejection.detail


def test_a_gateway_hears_which_packs_the_bridge_refused(city, gateway, good):
    topic = f"citylab/v1/gateways/{gateway}/acks"
    city.device.listen(topic)

    city.pack(gateway, {"n": good, "t": T0, "v": 1}, {"n": good, "vs": "x" * LARGEST_PACK}, epoch=4, seq=1)
    city.pack(gateway, {"n": good, "t": T0, "v": 1}, epoch=4, seq=2)

    def told() -> tuple[dict[str, str], list[list[int]]]:
        acks = [msgspec.json.decode(payload) for where, payload in city.device.heard if where == topic]
        refused = {seq: why for ack in acks for seq, why in ack.get("refused", {}).items()}
        return refused, [pair for ack in acks for pair in ack["appended"]]

    city.until(lambda: told() == ({"1": "malformed"}, [[2, 2]]), "the gateway is told of both packs")
    city.until(lambda: city.results(good) == [1], "the second is stored")
    city.until(lambda: city.ledger(gateway, 4).get("received") == "{[1,3)}", "the ledger has both")


@pytest.mark.parametrize(
    "name", ["größe", "a b", "x" * 65, "", "名" * 3_000, "".join(map(chr, range(256, 2_300)))]
)
def test_a_gateway_whose_name_is_none_is_refused(city, gateway, name):
    at = city.fetch("SELECT coalesce(max(id), 0) FROM rejections")[0][0]

    city.publish(f"{name}/packs", msgspec.json.encode([{"n": gateway, "v": 1}]))

    found = "SELECT gateway, reason, detail FROM rejections WHERE id > %s"
    ((kept_as, reason, detail),) = city.until(lambda: city.fetch(found, at), "the pack is rejected")
    assert (kept_as, reason) == (name[:64], "malformed")
    assert "a gateway's name" in detail


def test_a_clock_that_is_a_year_ahead_is_refused_and_its_skew_shown(city, gateway, good):
    ahead = now() / 1e6 + YEAR
    city.pack(gateway, *({"n": good, "t": ahead + i, "v": i} for i in range(3)), epoch=1, seq=1)

    city.until(lambda: len(city.rejections(gateway)) == 3, "all three are rejected")
    assert {r.reason for r in city.rejections(gateway)} == {"time-in-future"}
    assert city.ledger(gateway, 1)["skew_ms"] == pytest.approx(-YEAR * 1_000, abs=60_000)


def test_a_clock_that_is_a_year_behind_is_stored_as_sent_and_its_skew_shown(city, gateway, good):
    behind = round(now() / 1e6 - YEAR)
    city.pack(gateway, *({"n": good, "t": behind + i, "v": i} for i in range(3)), epoch=1, seq=1)

    city.until(lambda: city.results(good) == [0, 1, 2], "they are stored as sent")
    assert city.rejections(gateway) == []
    assert city.ledger(gateway, 1)["skew_ms"] == pytest.approx(YEAR * 1_000, abs=60_000)


@pytest.mark.parametrize("interval", ["PT1S", "PT1H"])  # with minutes, and without
def test_numbers_at_the_edges_of_what_a_float_holds_are_stored(city, gateway, interval):
    name = f"{gateway}/a"
    city.register(gateway, thing(gateway, stream(name, interval=interval)))
    values = [0.0, -0.0, 1e-170, 3e-170, 5e-324, -1e-323, 1e308, -1e308, 1e139, -1e139, 2.0**53, 0.1]
    for i in range(0, len(values), 2):
        city.pack(gateway, *({"n": name, "t": T0 + n, "v": values[n]} for n in (i, i + 1)))
        city.until(lambda n=i + 2: len(city.results(name)) == n, "the values are stored")

    assert city.results(name) == values
    day = "SELECT count, min, max FROM aggregates WHERE datastream_id = %s AND width = 86400"
    id_ = city.datastream(name)["@iot.id"]
    city.until(lambda: city.fetch(day, id_) == [(12, -1e139, 1e139)], "the day is folded")


def test_what_is_not_finite_stays_out_whatever_its_stream(city, gateway):
    name = f"{gateway}/a"
    records = [
        {"n": name, "t": T0 + i, "v": value} for i, value in enumerate((math.inf, -math.inf, math.nan))
    ]
    records.append({"n": name, "t": T0 + 9, "v": 1, "s": math.inf})
    records.append({"n": name, "t": math.nan, "v": 1})
    city.pack(gateway, *records, cbor=True)
    city.until(lambda: len(city.rejections(gateway)) == 5, "they are rejected")

    city.register(
        gateway, thing(gateway, stream(name, kind=MEASUREMENT.replace("Measurement", "Observation")))
    )
    city.pack(gateway, *records, {"n": name, "t": T0, "v": 4}, cbor=True)

    city.until(lambda: city.results(name) == [4], "what is finite is stored")
    assert {r.reason for r in city.rejections(gateway) if r.open} == {"not-finite"}


def test_a_status_that_is_none_is_kept_with_its_reason(city, gateway):
    for payload in (b"{", b"[]", b'{"state":"a\\u0000"}', b"\xff", b'{"a":' * DEEP):
        city.publish(f"{gateway}/status", payload)
    city.publish(f"{gateway}/status", b'{"state":"online","note":"a\\\\u0000"}')

    city.until(lambda: len(city.rejections(gateway)) == 5, "five statuses are rejected")
    assert {r.reason for r in city.rejections(gateway)} == {"malformed"}
    status = "SELECT status ->> 'state' FROM gateways WHERE name = %s"
    city.until(lambda: city.fetch(status, gateway) == [("online",)], "the sixth is taken")


def test_a_message_larger_than_the_log_takes_is_refused_in_part(city, gateway):
    large = b"[" + b" " * (5 << 20)
    if city.broker.kind == "embedded":  # it takes no message above 512 KiB, and disconnects who sends one
        assert not city.accepts(f"{gateway}/packs", large)
        return
    for kind in ("packs", "descriptor", "status"):
        city.publish(f"{gateway}/{kind}", large)

    city.until(lambda: len(city.rejections(gateway)) == 3, "all three are rejected")
    assert {len(r.payload) for r in city.rejections(gateway)} == {LARGEST_PACK}


def test_ten_thousand_malformed_packs_delay_nobody_and_are_bounded(city, gateway, good):
    loud = f"{gateway[:50]}-loud"
    city.device.publish_all(f"citylab/v1/gateways/{loud}/packs", [b"[%d]" % n for n in range(10_500)])
    city.pack(gateway, {"n": good, "t": T0, "v": 1})

    city.until(lambda: city.results(good) == [1], "the other gateway's reading is stored")
    city.until(lambda: city.ledger(loud).get("rejected") == 10_500, "all are counted", within=60)
    assert len(city.rejections(loud)) == 10_000


def test_noise_of_every_kind_is_accounted_for(city, gateway, good):
    random_ = random.Random(20_260_101)
    packs = [_noise(random_, good) for _ in range(1_500)]
    city.device.publish_all(f"citylab/v1/gateways/{gateway}/packs", packs)
    city.until(lambda: city.ledger(gateway).get("packs") == len(packs), "every pack is in the ledger")

    ledger = city.ledger(gateway)
    assert ledger["records"] == ledger["stored"] + ledger["duplicates"] + ledger["rejected"]
    assert Counter(ledger["rejected_by_reason"]).total() == ledger["rejected"]
    assert ledger["stored"] > 100
    assert ledger["rejected_by_reason"]["malformed"] > 100


def _noise(random_: random.Random, name: str) -> bytes:
    """A pack that is well-formed, or nearly, or not at all."""
    strange = [
        0,
        -1,
        2**63,
        1e300,
        -1e-300,
        math.nan,
        math.inf,
        "",
        "\x7f",
        "a\0b",
        "\u202e",
        None,
        True,
        [],
        {},
        10**25,
    ]
    labels = [
        "n",
        "u",
        "v",
        "vs",
        "vb",
        "vd",
        "s",
        "t",
        "ut",
        "bn",
        "bt",
        "bu",
        "bv",
        "bs",
        "bver",
        "quality",
        "x_",
    ]
    records = []
    for _ in range(random_.randint(1, 4)):
        record: dict[str, object] = {"n": name, "t": T0 + random_.random() * 1e6, "v": random_.gauss(0, 10)}
        for _ in range(random_.choice((0, 0, 1, 2))):
            record[random_.choice(labels)] = random_.choice(strange)
        records.append(record)
    as_json = random_.random() < 0.5
    pack = msgspec.json.encode(records) if as_json else cbor2.dumps([labelled(record) for record in records])
    if random_.random() < 0.3:
        at = random_.randrange(len(pack))
        pack = (
            pack[:at]
            + random_.choice((b"", b"\x00", random_.randbytes(3), struct.pack(">d", 1e9)))
            + pack[at + 1 :]
        )
    return pack


def test_a_value_that_the_store_refuses_for_a_reason_nobody_foresaw_costs_one_pack(
    city: City, gateway: str, good: str
):
    city.fetch(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'no' USING ERRCODE = 'data_exception'; END $$"
    )
    city.fetch(
        "CREATE TRIGGER refuse BEFORE INSERT ON observations FOR EACH ROW"
        " WHEN (NEW.result_number = 1234567.5) EXECUTE FUNCTION refuse()"
    )
    try:
        city.pack(gateway, {"n": good, "t": T0, "v": 1234567.5}, {"n": good, "t": T0 + 1, "v": 1})
        city.pack(gateway, {"n": good, "t": T0 + 2, "v": 2})
        city.until(lambda: city.results(good) == [2], "the other pack's value")
        (rejection,) = city.until(lambda: city.rejections(gateway), "the pack among the rejections")
    finally:
        city.fetch("DROP TRIGGER refuse ON observations")
        city.fetch("DROP FUNCTION refuse")
    assert (rejection.reason, "cannot keep" in rejection.detail) == ("malformed", True)
