"""One reading, from a gateway to a user, on both sets of engines: packs of every kind, and what becomes of them."""

import json
import sqlite3

import msgspec
import pytest
from city import run
from city_devices import MEASUREMENT, T0, stream, thing

from citylab.times import format_instant, now, parse_instant

OBSERVATION = MEASUREMENT.replace("OM_Measurement", "OM_Observation")


@pytest.fixture
def no2(city, gateway) -> str:
    """A stream that is registered."""
    city.register(gateway, thing(gateway, stream(f"{gateway}/no2")))
    return f"{gateway}/no2"


def records(name: str, values: dict[int, float]) -> list[dict[str, object]]:
    """A reading a second, by seconds after T0."""
    return [{"n": name, "t": T0 + second, "v": value} for second, value in values.items()]


def times(datastream) -> list[int]:
    return [parse_instant(one["phenomenonTime"]) // 1_000_000 - T0 for one in datastream["Observations"]]


def test_a_reading_goes_the_whole_way(city, gateway):
    name = f"{gateway}/no2"
    with city.live() as live:
        city.descriptor(gateway, thing(gateway, stream(name)))
        city.pack(gateway, {"n": name, "u": "ug/m3", "t": T0, "v": 21.4, "quality": "good"})

        city.until(lambda: city.results(name), "the reading is in the API")
        found = city.datastream(name)
        (seen,) = city.until(
            lambda: [one for one in live.observations if one["Datastream"] == found["@iot.id"]],
            "the reading is live",
        )

    (observation,) = found["Observations"]
    assert observation["result"] == 21.4
    assert observation["phenomenonTime"] == format_instant(T0 * 1_000_000)
    assert observation["resultQuality"] == {"flag": "good"}
    assert (seen["result"], seen["phenomenonTime"]) == (21.4, observation["phenomenonTime"])
    assert found["Thing"]["name"] == gateway
    assert observation["@iot.id"] in {
        one["@iot.id"]
        for one in city.get("/v1.1/Observations?$orderby=phenomenonTime desc&$top=10000")["value"]
    }


def test_minutes_are_there_with_the_rows_and_hours_and_days_follow(city, gateway, no2):
    city.pack(
        gateway,
        *records(no2, {0: 1, 30: 3, 60: 10, 3_600: 20}),
        {"n": no2, "t": T0 + 1, "v": 99, "quality": "bad"},
    )
    city.until(lambda: len(city.results(no2)) == 5, "all readings are stored")
    windows = (
        "SELECT extract(epoch FROM window_start)::bigint - %s, count, good_count, mean, min, max, first, last"
        " FROM aggregates JOIN datastreams d ON d.id = datastream_id WHERE d.stream_name = %s AND width = %s ORDER BY 1"
    )

    assert city.fetch(windows, T0, no2, 60) == [
        (0, 3, 2, 2.0, 1.0, 3.0, 1.0, 3.0),
        (60, 1, 1, 10.0, 10.0, 10.0, 10.0, 10.0),
        (3_600, 1, 1, 20.0, 20.0, 20.0, 20.0, 20.0),
    ]
    city.until(lambda: city.fetch(windows, T0, no2, 86_400), "the day is folded")
    assert city.fetch(windows, T0, no2, 3_600) == [
        (0, 4, 3, pytest.approx(14 / 3), 1.0, 10.0, 1.0, 10.0),
        (3_600, 1, 1, 20.0, 20.0, 20.0, 20.0, 20.0),
    ]
    assert city.fetch(windows, T0, no2, 86_400) == [(0, 5, 4, 8.5, 1.0, 20.0, 1.0, 20.0)]


def test_late_readings_find_their_place(city, gateway, no2):
    city.pack(gateway, *records(no2, {10: 1, 70: 2}))
    city.until(lambda: len(city.results(no2)) == 2, "the newer readings are stored")

    city.pack(gateway, *records(no2, {5: 0, 20: 3}))

    city.until(lambda: len(city.results(no2)) == 4, "the late readings are stored")
    assert city.results(no2) == [0, 1, 3, 2]
    counts = "SELECT count, mean, first, last FROM aggregates WHERE datastream_id = %s AND width = 60 ORDER BY window_start"
    assert city.fetch(counts, city.datastream(no2)["@iot.id"]) == [
        (3, pytest.approx(4 / 3), 0, 3),
        (1, 2, 2, 2),
    ]


def test_a_gateway_hears_that_its_packs_are_in_the_log(city, gateway, no2):
    topic = f"citylab/v1/gateways/{gateway}/acks"
    city.device.listen(topic)

    for seq in (3, 1, 2, 7):
        city.pack(gateway, *records(no2, {seq: seq}), epoch=9_007_199_254_740_991, seq=seq)

    def told() -> set[int]:
        acks = [json.loads(payload) for where, payload in city.device.heard if where == topic]
        assert all(ack["epoch"] == 9_007_199_254_740_991 for ack in acks)
        return {seq for ack in acks for first, last in ack["appended"] for seq in range(first, last + 1)}

    city.until(lambda: told() == {1, 2, 3, 7}, "the gateway is told of its four packs")
    city.until(lambda: city.results(no2) == [1, 2, 3, 7], "they are stored")
    ledger = city.ledger(gateway, 9_007_199_254_740_991)
    assert ledger["received"] == "{[1,4),[7,8)}"
    assert (ledger["packs"], ledger["records"], ledger["stored"]) == (4, 4, 4)


def test_a_pack_that_comes_twice_changes_nothing_but_the_ledger(city, gateway, no2):
    city.pack(gateway, *records(no2, {0: 1, 1: 2}), epoch=5, seq=1)
    city.until(lambda: city.results(no2) == [1, 2], "the pack is stored")
    before = city.datastream(no2)

    city.pack(gateway, *records(no2, {0: 1, 1: 2}), epoch=5, seq=1)

    city.until(lambda: city.ledger(gateway, 5)["duplicate_packs"] == 1, "the second one is counted")
    assert city.datastream(no2) == before
    ledger = city.ledger(gateway, 5)
    assert (ledger["records"], ledger["stored"], ledger["duplicates"], ledger["rejected"]) == (4, 2, 2, 0)
    assert city.rejections(gateway) == []


@pytest.mark.parametrize("form", ["json", "cbor"])
def test_an_edge_agent_delivers_all_that_its_driver_says(city, gateway, form, tmp_path):
    gateway = f"{gateway}-{form}"
    name = f"{gateway}/no2"
    descriptor, readings = tmp_path / "lamp.json", tmp_path / "readings.jsonl"
    descriptor.write_bytes(msgspec.json.encode(thing(gateway, stream(name, kind=OBSERVATION))))
    values = [0.1 * second for second in range(1_000)] + ["green", True]
    lines = [{"n": name, "t": T0 + second, "v": value} for second, value in enumerate(values)]
    readings.write_bytes(b"\n".join(map(msgspec.json.encode, lines)))

    ended = run(
        "edge", "--gateway", gateway, "--descriptor", descriptor, "--readings", readings, "--form", form,
        env=city.environment(),
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    city.until(lambda: city.results(name) == values, "every reading is stored")
    with sqlite3.connect(city.folder / "edge" / gateway / "outbox.db") as outbox:
        ((epoch, last),) = outbox.execute("SELECT epoch, last FROM outbox")
        assert outbox.execute("SELECT count(*) FROM numbers WHERE pending").fetchone() == (0,)
    outbox.close()
    assert city.ledger(gateway, epoch)["received"] == f"{{[1,{last + 1})}}"
    assert city.rejections(gateway) == [] or not any(one.open for one in city.rejections(gateway))
    status = "SELECT status ->> 'state', status -> 'outbox' ->> 'pending' FROM gateways WHERE name = %s"
    city.until(
        lambda: city.fetch(status, gateway) == [("offline", "[]")], "the gateway has said that it goes"
    )


def test_packs_in_cbor_mean_what_they_mean_in_json(city, gateway):
    names = {form: f"{gateway}/{form}" for form in ("json", "cbor")}
    city.register(gateway, thing(gateway, *(stream(name, kind=OBSERVATION) for name in names.values())))

    for form, name in names.items():
        city.pack(
            gateway,
            {"bn": name, "bt": T0, "bu": "ug/m3", "v": 1.5},
            {"t": 1, "v": -2},
            {"t": 2.25, "vs": "niño 東京 \U0001f6b2"},
            {"t": 3, "vb": False},
            {"t": 4, "v": 3, "quality": "suspect"},
            cbor=form == "cbor",
        )

    expected = [1.5, -2, "niño 東京 \U0001f6b2", False, 3]
    city.until(
        lambda: city.results(names["cbor"]) == city.results(names["json"]) == expected, "both are stored"
    )
    json_, cbor = (city.datastream(name) for name in names.values())
    for column in ("phenomenonTime", "resultQuality"):
        assert [o.get(column) for o in json_["Observations"]] == [o.get(column) for o in cbor["Observations"]]
    assert json_["Observations"][2]["phenomenonTime"].endswith("02.25Z")


def test_text_and_truth_are_results_of_their_own_kind(city, gateway):
    kinds = {"count": [3, 2**53 - 1], "category": ["green", ""], "truth": [True, False]}
    streams = [
        stream(f"{gateway}/{kind}", kind=MEASUREMENT.replace("Measurement", f"{kind.title()}Observation"))
        for kind in kinds
    ]
    city.register(gateway, thing(gateway, *streams))

    labels = {"count": "v", "category": "vs", "truth": "vb"}
    city.pack(
        gateway,
        *(
            {"n": f"{gateway}/{kind}", "t": T0 + second, labels[kind]: value}
            for kind, values in kinds.items()
            for second, value in enumerate(values)
        ),
    )

    for kind, values in kinds.items():
        city.until(lambda k=kind: len(city.results(f"{gateway}/{k}")) == 2, f"{kind} is stored")
        found = city.results(f"{gateway}/{kind}")
        assert found == values
        assert [type(result) for result in found] == [type(value) for value in values]


def test_flags_become_resultquality(city, gateway, no2):
    flags = ["good", "suspect", "bad", None]
    city.pack(
        gateway,
        *({"n": no2, "t": T0 + i, "v": i} | ({"quality": f} if f else {}) for i, f in enumerate(flags)),
    )

    city.until(lambda: len(city.results(no2)) == 4, "all are stored")

    found = [one.get("resultQuality") for one in city.datastream(no2)["Observations"]]
    assert found == [{"flag": "good"}, {"flag": "suspect"}, {"flag": "bad"}, None]


def test_a_record_without_a_time_gets_that_of_its_receipt(city, gateway, no2):
    before = now()
    city.pack(gateway, {"n": no2, "v": 1}, {"n": no2, "t": -60, "v": 0})
    city.until(lambda: city.results(no2) == [0, 1], "both are stored")

    first, second = (parse_instant(one["phenomenonTime"]) for one in city.datastream(no2)["Observations"])
    assert before <= second <= now()
    assert second - first == 60_000_000
    assert city.ledger(gateway)["untimed"] == 2


def test_each_name_of_a_unit_is_taken(city, gateway):
    name = f"{gateway}/t"
    city.register(gateway, thing(gateway, stream(name, unit="°C", senmlUnit="Cel")))

    city.pack(
        gateway,
        *({"n": name, "t": T0 + i, "v": i} | u for i, u in enumerate([{"u": "Cel"}, {"u": "°C"}, {}])),
    )

    city.until(lambda: city.results(name) == [0, 1, 2], "all three are stored")


def test_packs_without_acknowledgement_by_mqtt_arrive_too(city, gateway, no2):
    city.publish(f"{gateway}/packs", msgspec.json.encode(records(no2, {0: 7})), qos=0)

    city.until(lambda: city.results(no2) == [7], "the pack of QoS 0 is stored")


def test_a_gateways_state_is_known_and_a_will_takes_only_its_presence(city, gateway):
    city.publish(f"{gateway}/status", b'{"state":"online","outbox":{"last":7}}', retain=True)
    city.publish(f"{gateway}/status", b'{"state":"offline"}', retain=True)

    status = "SELECT status ->> 'state', (status -> 'outbox' ->> 'last')::int FROM gateways WHERE name = %s"
    city.until(
        lambda: city.fetch(status, gateway) == [("offline", 7)], "it is offline, with what it last held"
    )


def test_the_last_of_several_states_stands(city, gateway):
    online, offline = b'{"state":"online"}', b'{"state":"offline"}'
    status = "SELECT status ->> 'state' FROM gateways WHERE name = %s"
    city.publish(f"{gateway}/status", online)
    city.until(lambda: city.fetch(status, gateway) == [("online",)], "it is online")

    city.device.publish_all(f"citylab/v1/gateways/{gateway}/status", [offline, online] * 5)
    city.publish(f"{gateway}/status", b'{"last":true}')

    told = "SELECT status ->> 'state' FROM gateways WHERE name = %s AND status ? 'last'"
    city.until(lambda: city.fetch(told, gateway), "the last status is kept")
    assert city.fetch(told, gateway) == [("online",)]
