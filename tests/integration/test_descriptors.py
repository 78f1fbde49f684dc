"""What a gateway says of itself, and what becomes of it when it says it again, otherwise, late or wrongly."""

import msgspec
import pytest
from city_devices import T0, place, stream, thing

from citylab.times import format_instant


def one(name: str, second: int, value: float) -> dict[str, object]:
    return {"n": name, "t": T0 + second, "v": value}


def test_the_same_descriptor_twice_changes_nothing(city, gateway):
    what = thing(gateway, stream(f"{gateway}/a"), stream(f"{gateway}/b"))
    city.register(gateway, what)
    before = city.entities()

    city.register(gateway, [what])  # other bytes, the same meaning

    assert city.entities() == before


def test_sensors_and_properties_are_shared_and_never_changed(city, gateway):
    a = stream(f"{gateway}/a")
    a["Sensor"]["name"] = a["ObservedProperty"]["definition"] = f"urn:{gateway}"
    b = msgspec.json.decode(
        msgspec.json.encode(a).replace(b"/a", b"/b").replace(b"analyser", b"another text")
    )
    city.register(gateway, thing(gateway, a))

    city.register(f"{gateway}-2", thing(f"{gateway}-2", b))

    for table, column in (("sensors", "name"), ("observed_properties", "definition")):
        assert len(city.fetch(f"SELECT 1 FROM {table} WHERE {column} = %s", f"urn:{gateway}")) == 1
    assert city.fetch("SELECT description FROM sensors WHERE name = %s", f"urn:{gateway}") == [("analyser",)]


def test_only_what_changed_is_applied_so_that_an_edit_survives(city, gateway):
    name = f"{gateway}/a"
    city.register(gateway, thing(gateway, stream(name)))
    city.fetch("UPDATE things SET name = 'edited' WHERE key = %s", gateway)
    city.fetch("UPDATE datastreams SET description = 'edited' WHERE stream_name = %s", name)

    changed = thing(gateway, stream(name, title="another title"), maintained="2026-02-01")
    city.register(gateway, changed)

    found = city.datastream(name)
    assert (found["name"], found["description"]) == ("another title", "edited")
    assert found["Thing"]["name"] == "edited"
    assert found["Thing"]["properties"]["maintained"] == "2026-02-01"
    assert city.rejections(gateway) == []


def test_a_datastream_that_is_no_longer_listed_is_inactive_until_it_is_again(city, gateway):
    streams = [stream(f"{gateway}/{letter}") for letter in "ab"]
    city.register(gateway, thing(gateway, *streams))
    city.pack(gateway, one(f"{gateway}/b", 0, 1))
    city.until(lambda: city.results(f"{gateway}/b") == [1], "the reading is stored")
    ids = [city.datastream(f"{gateway}/{letter}")["@iot.id"] for letter in "ab"]

    city.register(gateway, thing(gateway, streams[0]))

    gone = city.datastream(f"{gateway}/b")
    assert gone["properties"]["active"] is False
    assert [one["result"] for one in gone["Observations"]] == [1]
    assert "active" not in city.datastream(f"{gateway}/a")["properties"]

    city.register(gateway, thing(gateway, *streams))

    assert [city.datastream(f"{gateway}/{letter}")["@iot.id"] for letter in "ab"] == ids
    assert "active" not in city.datastream(f"{gateway}/b")["properties"]


def test_a_thing_that_is_no_longer_listed_keeps_its_datastreams_inactive(city, gateway):
    things = [thing(f"{gateway}-{n}", stream(f"{gateway}/{n}")) for n in (1, 2)]
    city.register(gateway, *things)

    city.register(gateway, [things[1]])

    assert city.datastream(f"{gateway}/1")["properties"]["active"] is False
    assert "active" not in city.datastream(f"{gateway}/2")["properties"]


def test_a_thing_that_moved_has_a_history_and_each_reading_the_feature_of_its_time(city, gateway):
    name = f"{gateway}/a"
    city.register(gateway, thing(gateway, stream(name), at=place(2.10, 41.30, "old")))
    # In the past, so that readings of before and after the move can be sent.
    city.fetch(
        "UPDATE historical_locations SET time = %s WHERE thing_id = (SELECT id FROM things WHERE key = %s)",
        format_instant((T0 - 10) * 1_000_000),
        gateway,
    )
    city.register(gateway, thing(gateway, stream(name), at=place(2.20, 41.40, "new")))
    ((moved,),) = city.fetch(
        "SELECT extract(epoch FROM max(h.time))::bigint FROM historical_locations h JOIN things t ON t.id = h.thing_id"
        " WHERE t.key = %s",
        gateway,
    )

    city.pack(gateway, {"n": name, "t": moved + 1, "v": 2})
    city.until(lambda: city.results(name) == [2], "the reading of after the move is stored")
    city.pack(gateway, {"n": name, "t": moved - 1, "v": 1})
    city.until(lambda: city.results(name) == [1, 2], "the late reading of before the move is stored")

    found = city.datastream(name)
    features = [
        city.get(f"/v1.1/Observations({one['@iot.id']})/FeatureOfInterest") for one in found["Observations"]
    ]
    assert [feature["name"] for feature in features] == ["old", "new"]
    assert features[1]["feature"]["coordinates"] == [2.20, 41.40]
    history = city.get(
        f"/v1.1/Things({found['Thing']['@iot.id']})/HistoricalLocations?$expand=Locations&$orderby=time"
    )
    assert [one["Locations"][0]["name"] for one in history["value"]] == ["old", "new"]
    here = city.get(f"/v1.1/Things({found['Thing']['@iot.id']})/Locations")["value"]
    assert [location["name"] for location in here] == ["new"]


def test_several_gateways_feed_one_thing_when_it_names_them(city, gateway):
    name, second = f"{gateway}/a", f"{gateway}-2"
    city.register(gateway, thing(gateway, stream(name), gateways=[second]))

    city.pack(gateway, one(name, 0, 0))
    city.pack(second, one(name, 1, 1))
    city.register(second, thing(gateway, stream(name), stream(f"{gateway}/b"), gateways=[second]))
    city.pack(second, one(f"{gateway}/b", 0, 5))

    city.until(lambda: city.results(f"{gateway}/b") == [5], "the second gateway's own stream is stored")
    city.until(lambda: city.results(name) == [0, 1], "both gateways' readings are stored")
    history = (
        "SELECT count(*) FROM historical_locations h JOIN things t ON t.id = h.thing_id WHERE t.key = %s"
    )
    assert city.fetch(history, gateway) == [(1,)]  # to say where it is already is no move
    assert city.datastream(name)["Thing"]["@iot.id"] == city.datastream(f"{gateway}/b")["Thing"]["@iot.id"]
    assert city.rejections(second) == []


def test_a_pack_that_overtakes_its_descriptor_is_taken_up_by_itself(city, gateway):
    name = f"{gateway}/a"
    known = f"{gateway}/known"
    city.register(gateway, thing(gateway, stream(known)))
    city.pack(gateway, one(known, 0, 1), one(name, 0, 2), one(name, 1, 3), epoch=3, seq=1)
    city.until(lambda: city.results(known) == [1], "the good record does not wait")
    assert [(r.record, r.reason, r.stream, r.open) for r in city.rejections(gateway)] == [
        (1, "unknown-stream", name, True),
        (2, "unknown-stream", name, True),
    ]
    ledger = city.ledger(gateway, 3)
    assert (ledger["stored"], ledger["rejected"], ledger["rejected_by_reason"]) == (
        1,
        2,
        {"unknown-stream": 2},
    )

    city.register(gateway, thing(gateway, stream(known), stream(name)))

    city.until(lambda: city.results(name) == [2, 3], "what waited for the descriptor is stored")
    assert [r.open for r in city.rejections(gateway)] == [False, False]
    ledger = city.ledger(gateway, 3)
    assert (ledger["records"], ledger["stored"], ledger["rejected"]) == (3, 3, 0)
    assert ledger["rejected_by_reason"]["unknown-stream"] == 0
    assert ledger["received"] == "{[1,2)}"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"Locations": []}, "needs a Location"),
        ({"name": None}, "name must not be null"),
        ({"name": {"a": 1}}, "name must be a string"),
        ({"properties": ["key"]}, "properties must be a JSON object"),
        ({"colour": "red"}, "no property 'colour'"),
        ({"description": "a\0b"}, "NUL"),
        ({"Datastreams": {}}, "array of objects"),
    ],
)
def test_a_thing_that_is_wrong_harms_no_other(city, gateway, wrong, why):
    bad = thing(f"{gateway}-bad", stream(f"{gateway}/bad")) | wrong
    good = [thing(f"{gateway}-{n}", stream(f"{gateway}/{n}")) for n in (1, 2)]
    services = city.pids()

    city.register(gateway, good[0], bad, good[1])

    (rejection,) = city.rejections(gateway)
    assert rejection.reason == "malformed"
    assert why in rejection.detail
    assert (rejection.record, rejection.payload) == (1, msgspec.json.encode(bad))
    assert [city.datastream(f"{gateway}/{n}") is not None for n in (1, 2, "bad")] == [True, True, False]
    assert city.pids() == services


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"name": None}, "name must not be null"),
        ({"name": {"a": 1}}, "name must be a string"),
        ({"description": 7}, "description must be a string"),
        ({"description": "a\0b"}, "NUL"),
        ({"colour": "red"}, "no property 'colour'"),
        ({"colour": "a\0b"}, "no property 'colour'"),
        ({"Locations": []}, "at least one Location"),
        ({"Locations": [{"name": "nowhere"}]}, "description"),
        ({"Locations": ["nowhere"]}, "Location"),
        ({"Datastreams": [{"name": "x", "properties": {"streamName": "Größe"}}]}, "streamName"),
    ],
)
def test_a_change_that_is_wrong_leaves_the_thing_as_it_was(city, gateway, wrong, why):
    what = thing(gateway, stream(f"{gateway}/a"))
    city.register(gateway, what)
    before, services = city.entities(), city.pids()

    city.register(gateway, what | wrong)

    (rejection,) = city.rejections(gateway)
    assert rejection.reason == "malformed"
    assert why in rejection.detail
    assert city.entities() == before
    assert city.pids() == services


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ["x"]},
        {"description": None},
        {"observationType": {"a": 1}},
        {"unitOfMeasurement": "ug/m3"},
        {"properties": {"note": "a\0b"}},
        {"colour": "red"},
    ],
)
def test_a_datastream_whose_change_is_wrong_stays_as_it_was(city, gateway, wrong):
    city.register(gateway, thing(gateway, stream(f"{gateway}/a")))
    before, services = city.entities(), city.pids()

    changed = stream(f"{gateway}/a")
    merged = (
        changed
        | wrong
        | ({"properties": changed["properties"] | wrong["properties"]} if "properties" in wrong else {})
    )
    city.register(gateway, thing(gateway, merged))

    (rejection,) = city.rejections(gateway)
    assert rejection.reason == "malformed"
    assert city.entities() == before
    assert city.pids() == services


@pytest.mark.parametrize(
    "document", [b"{", b"[1]", b"7", b"\xff", b'{"a":' * 100_000, b"[" * 100_000, b'["\\ud800"]']
)
def test_a_descriptor_that_is_none_is_kept_with_its_reason(city, gateway, document):
    services = city.pids()

    city.publish(f"{gateway}/descriptor", document)

    (rejection,) = city.until(lambda: city.rejections(gateway), "the descriptor is rejected")
    assert (rejection.reason, rejection.record, rejection.payload) == ("malformed", -1, document)
    assert rejection.detail
    assert city.pids() == services


@pytest.mark.parametrize(
    ("things", "why"),
    [
        ([thing("{}"), thing("{}", name="again")], "listed twice"),
        ([thing("{}", stream("{}/a")), thing("{}-2", stream("{}/a"))], "listed in '{}' already"),
        ([thing("{}"), thing("{}-2", stream("{}/a"), stream("{}/a", title="again"))], "one streamName"),
        ([thing("{}"), thing("{}-2", stream("{}/a") | {"Observations": []})], "does not come with its Observations"),
        ([thing("{}"), thing("{}-2", at=place() | {"Things": [{"@iot.id": 1}]})], "does not come with its Things"),
        ([thing("{}"), thing("{}-2", at={"@iot.id": 2**60})], "does not exist"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_or_reaches_for_others_is_refused(city, gateway, things, why):
    text = msgspec.json.encode(things).replace(b"{}", gateway.encode())
    before = city.entities()["datastreams"]

    city.register(gateway, msgspec.json.decode(text))

    (rejection,) = city.rejections(gateway)
    assert rejection.record == 1
    assert why.replace("{}", gateway) in rejection.detail
    assert city.fetch("SELECT name FROM things WHERE key = %s", gateway) == [(gateway,)]
    assert city.entities()["datastreams"][len(before) :] == [
        row for row in city.entities()["datastreams"] if f'"{gateway}/a"' in row
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_a_datastream_may_go_from_one_thing_to_another(city, gateway, order):
    moving, staying = stream(f"{gateway}/moving"), stream(f"{gateway}/staying")
    city.register(gateway, [thing(f"{gateway}-a", moving), thing(f"{gateway}-b", staying)][::order])
    before = city.datastream(f"{gateway}/moving")

    city.register(gateway, [thing(f"{gateway}-a"), thing(f"{gateway}-b", staying, moving)][::order])

    after = city.datastream(f"{gateway}/moving")
    assert after["@iot.id"] == before["@iot.id"]
    assert (before["Thing"]["name"], after["Thing"]["name"]) == (f"{gateway}-a", f"{gateway}-b")
    assert "active" not in after["properties"]
    assert city.rejections(gateway) == []


def test_a_sensor_may_be_replaced(city, gateway):
    name = f"{gateway}/a"
    city.register(gateway, thing(gateway, stream(name)))
    new = stream(name)
    new["Sensor"]["name"] = f"new sensor of {gateway}"

    city.register(gateway, thing(gateway, new))

    found = city.datastream(name)
    assert city.get(f"/v1.1/Datastreams({found['@iot.id']})/Sensor")["name"] == f"new sensor of {gateway}"


def test_names_in_any_alphabet_are_kept_exactly(city, gateway):
    name = f"{gateway}/a"
    texts = [
        "Gràcia · Größe 東京 \U0001f6b2",
        "\u0627\u0644\u0645\u062f\u064a\u0646\u0629",
        "e\u0301",
        "'; DROP TABLE things; --",
    ]

    for text in texts:  # first created, then changed
        city.register(gateway, thing(gateway, stream(name, title=text), name=text))

        found = city.datastream(name)
        assert (found["name"], found["Thing"]["name"]) == (text, text)
    assert city.rejections(gateway) == []


def test_a_stream_name_in_another_alphabet_is_malformed(city, gateway):
    city.register(
        gateway, [thing(gateway, stream(f"{gateway}/grà")), thing(f"{gateway}-2", stream(f"{gateway}/b"))]
    )

    (rejection,) = city.rejections(gateway)
    assert rejection.reason == "malformed"
    assert f"{gateway}/grà" in rejection.detail
    assert "RFC 8428" in rejection.detail
    assert city.datastream(f"{gateway}/b")


def test_things_and_streams_of_another_gateway_are_not_ones_own(city, gateway):
    mine = thing(gateway, stream(f"{gateway}/a"))
    city.register(gateway, mine)
    before = city.entities()

    city.register(
        f"{gateway}-thief",
        thing(gateway, stream(f"{gateway}/a"), name="stolen"),
        thing(f"{gateway}-own", stream(f"{gateway}/a", title="stolen")),
    )

    found = city.rejections(f"{gateway}-thief")
    assert [r.reason for r in found] == ["not-yours", "not-yours"]
    assert gateway in found[0].detail
    assert f"{gateway}/a" in found[1].detail
    assert city.entities() == before
