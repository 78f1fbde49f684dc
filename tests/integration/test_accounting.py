"""What is missing, since when and why: asked over HTTP and on the command line, of a city with a real road."""

import base64

import msgspec
import pytest
from city import City, run
from city_devices import T0, stream, thing
from jsonschema import Draft202012Validator

from citylab.times import format_instant

EPOCH = 9_007_199_254_740_991


@pytest.fixture
def no2(city: City, gateway: str) -> str:
    """A stream with a value every ten seconds."""
    city.register(gateway, thing(gateway, stream(f"{gateway}/no2", interval="PT10S")))
    return f"{gateway}/no2"


def at(second: int) -> str:
    return format_instant((T0 + second) * 1_000_000)


def ask(city: City, path: str, document: str, **query: object) -> dict:
    """GET, and hold the answer against what the contract says of it."""
    answer = city.http.get(path, params=query)
    assert answer.status_code == 200, answer.text
    schemas = city.get("/openapi.json")["components"]["schemas"]
    Draft202012Validator(
        {"$ref": f"#/components/schemas/{document}", "components": {"schemas": schemas}}
    ).validate(answer.json())
    return answer.json()


def refusal(city: City, path: str, method: str = "GET") -> tuple[int, str]:
    answer = city.http.request(method, path)
    assert set(answer.json()) == {"code", "type", "message"}
    assert answer.json()["code"] == answer.status_code
    return answer.status_code, answer.json()["message"]


def entry(city: City, gateway: str) -> dict:
    (found,) = ask(city, "/ledger", "LedgerPage", gateway=gateway)["value"]
    return found


def test_the_ledger_says_what_is_missing_since_when_and_why(city, gateway, no2):
    for seq in (1, 2, 6, 7):
        city.pack(gateway, {"n": no2, "t": T0 + seq, "v": seq}, epoch=EPOCH, seq=seq)
    city.until(lambda: len(city.results(no2)) == 4, "the packs are stored")

    found = entry(city, gateway)
    assert (found["contiguous"], found["highest"], found["packs"]) == (2, 7, 4)
    assert [(h["first"], h["last"], h["state"]) for h in found["holes"]] == [(3, 5, "unsettled")]
    assert found["first_received"] <= found["holes"][0]["since"] <= found["last_received"]
    assert found["delay_since_receipt"]["p50_ms"] < 60_000
    since = found["holes"][0]["since"]

    status = {"state": "online", "outbox": {"epoch": EPOCH, "last": 8, "pending": [[5, 5]], "gone": [[3, 3]]}}
    city.publish(f"{gateway}/status", msgspec.json.encode(status), retain=True)
    city.until(lambda: entry(city, gateway)["missing"], "the gateway has said what it has")
    found = entry(city, gateway)
    assert [(h["first"], h["last"], h["state"], h["since"]) for h in found["holes"]] == [
        (3, 3, "gone", since), (4, 4, "missing", since), (5, 5, "pending", since), (8, 8, "missing", None),
    ]  # fmt: skip
    assert [found[name] for name in ("missing", "pending", "gone", "unsettled")] == [2, 1, 1, 0]
    assert f'citylab_packs_missing{{gateway="{gateway}"}} 2.0' in city.http.get("/metrics").text

    for seq in (5, 4, 8):
        city.pack(gateway, {"n": no2, "t": T0 + seq, "v": seq}, epoch=EPOCH, seq=seq)
    city.until(lambda: entry(city, gateway)["contiguous"] == 2 and len(city.results(no2)) == 7, "they came")
    assert [(h["first"], h["last"], h["state"]) for h in entry(city, gateway)["holes"]] == [(3, 3, "gone")]

    shown = run("ledger", "--gateway", gateway, env=city.environment())
    assert shown.returncode == 0, shown.stderr
    assert f"{gateway}, epoch {EPOCH}: 3 gone, passed at {since}: the gateway had to drop" in shown.stdout
    told = run("ledger", "--gateway", gateway, "--json", env=city.environment())
    assert msgspec.json.decode(told.stdout) == [entry(city, gateway)]


def test_the_ledger_comes_in_pages(city, gateway):
    names = [f"{gateway}-{i}" for i in range(3)]
    for name in names:
        city.publish(f"{name}/packs", b"no SenML")
    city.until(lambda: all(city.ledger(name) for name in names), "all three are in the ledger")

    seen, path = [], "/ledger?limit=1"
    while path:
        page = city.get(path)
        assert len(page["value"]) == 1
        seen += [(one["gateway"], one["epoch"]) for one in page["value"]]
        path = page.get("nextLink")

    assert seen == sorted(set(seen))
    assert {name for name, _ in seen} >= set(names)


def test_a_streams_holes_in_time(city, gateway, no2):
    seconds = [0, 10, 20, 60, 70, 300]
    city.pack(
        gateway, *({"n": no2, "t": T0 + s, "v": s} for s in seconds), {"n": no2, "t": T0 + 30, "vs": "x"}
    )
    city.until(lambda: len(city.results(no2)) == len(seconds), "they are stored")
    own = city.datastream(no2)["@iot.id"]

    query = {"datastream": own, "from": at(-30), "to": at(330), "width": "minute"}
    account = ask(city, "/ledger", "StreamAccount", **query)

    assert (account["received"], account["expected"], account["gateway"]) == (6, 36, gateway)
    assert [(w["start"], w["received"], w["expected"]) for w in account["windows"]] == [
        (at(-60), 0, 3), (at(0), 3, 6), (at(60), 2, 6), (at(120), 0, 6), (at(180), 0, 6), (at(240), 0, 6), (at(300), 1, 3),
    ]  # fmt: skip
    assert [(h["start"], h["end"], h["lost"]) for h in account["holes"]] == [
        (at(-30), at(0), 3), (at(20), at(60), 3), (at(70), at(300), 22), (at(300), at(330), 3),
    ]  # fmt: skip
    assert account["rejected_by_reason"] == {"type-mismatch": 1}

    shown = run("ledger", "--datastream", no2, "--from", at(-30), "--to", at(330), env=city.environment())
    assert shown.returncode == 0, shown.stderr
    assert "6 received; 36 expected at one a PT10S, 16.7%" in shown.stdout
    assert f"no value from {at(20)} to {at(60)}: 3 are not there" in shown.stdout


def test_windows_are_merged_from_those_that_are_stored(city, gateway, no2):
    values = {0: 1.0, 10: 3.0, 60: 10.0, 960: 5.0, 3_600: 20.0}
    city.pack(gateway, *({"n": no2, "t": T0 + s, "v": v} for s, v in values.items()))
    city.pack(gateway, {"n": no2, "t": T0 + 5, "v": 99, "quality": "bad"})
    city.until(lambda: len(city.results(no2)) == 6, "they are stored")
    own = city.datastream(no2)["@iot.id"]
    range_ = {"datastream": own, "from": at(0), "to": at(7_200)}

    quarters = ask(city, "/aggregates", "Aggregates", **range_, width="PT15M")["value"]
    assert [(w["start"], w["count"], w["good_count"], w["min"], w["max"], w["first"], w["last"]) for w in quarters] == [
        (at(0), 4, 3, 1, 10, 1, 10), (at(900), 1, 1, 5, 5, 5, 5), (at(3_600), 1, 1, 20, 20, 20, 20),
    ]  # fmt: skip
    first = quarters[0]
    assert first["mean"] == pytest.approx(14 / 3)
    assert first["standard_deviation"] == pytest.approx(4.725815626252609)
    assert (first["expected"], first["completeness"]) == (90, pytest.approx(4 / 90))
    assert quarters[1]["standard_deviation"] is None

    filled = ask(city, "/aggregates", "Aggregates", **range_, width="PT15M", fill="true")["value"]
    assert [w["start"] for w in filled] == [at(900 * i) for i in range(8)]
    assert (filled[2]["count"], filled[2]["mean"], filled[2]["completeness"]) == (0, None, 0)

    city.until(
        lambda: [w["count"] for w in ask(city, "/aggregates", "Aggregates", **range_)["value"]] == [5, 1],
        "the hours are folded",
    )
    city.until(
        lambda: (
            [w["count"] for w in ask(city, "/aggregates", "Aggregates", **range_, width="day")["value"]]
            == [6]
        ),
        "and the day",
    )
    line = ask(city, "/aggregates", "Line", **range_, points=3)
    assert line["observations"] == 5
    assert [time for time, _ in line["points"]] == [at(0), at(60), at(3_600)]


def test_a_rejection_is_taken_up_when_its_cause_is_mended(city, gateway):
    right, wrong = f"{gateway}/right", f"{gateway}/wrong"
    city.register(gateway, thing(gateway, stream(right), stream(wrong)))
    city.pack(
        gateway,
        *({"n": right, "t": T0 + i, "v": i, "u": "Cel", "quality": "suspect"} for i in range(3)),
        {"n": wrong, "t": T0, "v": 1, "u": "lx"}, {"n": right, "t": T0 + 3, "v": 3},
        epoch=5, seq=1,
    )  # fmt: skip
    city.until(lambda: city.results(right) == [3], "the good one is stored")
    found = ask(city, "/rejections", "RejectionPage", gateway=gateway, open="true")["value"]
    assert [(r["record"], r["reason"], r["stream"], r["replayable"]) for r in found] == [
        (3, "unit-mismatch", wrong, True), *((i, "unit-mismatch", right, True) for i in (2, 1, 0)),
    ]  # fmt: skip

    answer = city.http.post(f"/rejections/{found[0]['id']}/replay").json()  # nothing has changed
    assert (answer["asked"], answer["waiting"], answer["stored"], answer["rejected"]) == (
        1,
        0,
        0,
        {"unit-mismatch": 1},
    )

    city.register(gateway, thing(gateway, stream(right, senmlUnit="Cel"), stream(wrong)))
    answer = city.http.post("/rejections/replay", params={"gateway": gateway}).json()

    assert (answer["asked"], answer["waiting"], answer["stored"], answer["duplicates"], answer["rejected"]) == (
        4, 0, 3, 0, {"unit-mismatch": 1},
    )  # fmt: skip
    assert city.get(f"/rejections/replays/{answer['id']}") == answer
    assert city.results(right) == [0, 1, 2, 3]
    assert city.datastream(right)["Observations"][0]["resultQuality"] == {"flag": "suspect"}
    (still,) = ask(city, "/rejections", "RejectionPage", gateway=gateway, open="true")["value"]
    assert (still["id"], still["replay"]) == (found[0]["id"], None)
    ledger = city.ledger(gateway, 5)
    assert (ledger["packs"], ledger["records"], ledger["stored"], ledger["rejected"]) == (1, 5, 4, 1)
    assert ledger["rejected_by_reason"] == {"unit-mismatch": 1}

    told = run("rejections", "replay", "--stream", wrong, env=city.environment())
    assert told.returncode == 1
    assert "1 rejections: 0 records stored, 0 were stored already, 1 are still rejected" in told.stdout
    city.register(gateway, thing(gateway, stream(right, senmlUnit="Cel"), stream(wrong, senmlUnit="lx")))
    told = run("rejections", "replay", still["id"], "--json", env=city.environment())
    assert told.returncode == 0, told.stderr
    assert msgspec.json.decode(told.stdout)["stored"] == 1
    assert run("rejections", "replay", still["id"], env=city.environment()).returncode == 1  # it is closed
    listed = run("rejections", "list", "--gateway", gateway, "--all", env=city.environment()).stdout
    assert listed.count("unit-mismatch (taken up)") == 4


def test_what_cannot_be_right_stays_what_it_is(city, gateway, no2):
    """NUL in a text, a conflict, an unknown stream, a pack that is no SenML, a status: taken up in vain, and kept."""
    city.pack(gateway, {"n": no2, "t": T0, "v": 1}, epoch=5, seq=1)
    city.pack(
        gateway, {"n": no2, "t": T0, "v": 2}, {"n": f"{gateway}/nobody", "t": T0, "v": 2}, epoch=5, seq=2
    )
    city.pack(gateway, {"n": no2, "t": T0 + 10, "vs": "a\0b"}, epoch=5, seq=3)
    city.publish(f"{gateway}/packs", b"\xff\xfe")
    city.publish(f"{gateway}/status", b"none")
    city.until(lambda: len(city.rejections(gateway)) == 5, "all five are kept")
    before = {r["id"]: r for r in city.get(f"/rejections?gateway={gateway}")["value"]}
    status = [r["id"] for r in before.values() if not r["replayable"]]
    assert len(status) == 1

    answer = city.http.post("/rejections/replay", params={"gateway": gateway}).json()

    assert (answer["asked"], answer["waiting"], answer["stored"], answer["duplicates"]) == (4, 0, 0, 0)
    assert answer["rejected"] == {"conflict": 1, "malformed": 1, "type-mismatch": 1, "unknown-stream": 1}
    assert {r["id"]: r for r in city.get(f"/rejections?gateway={gateway}")["value"]} == before
    assert city.results(no2) == [1]
    one = next(r["id"] for r in before.values() if r["payload_bytes"] == 2)
    shown = ask(city, f"/rejections/{one}", "RejectionWithPayload")
    assert base64.b64decode(shown["payload"]["base64"]) == b"\xff\xfe"
    assert refusal(city, f"/rejections/{status[0]}/replay", "POST")[0] == 400
    for epoch in (0, 5):
        ledger = city.ledger(gateway, epoch)
        assert ledger["records"] == ledger["stored"] + ledger["duplicates"] + ledger["rejected"]
        assert ledger["rejected"] == sum(ledger["rejected_by_reason"].values())


def test_rejections_are_found_by_what_they_are_and_come_in_pages(city, gateway, no2):
    city.pack(gateway, *({"n": no2, "t": T0 + i, "v": i, "u": "Cel"} for i in range(5)))
    city.until(lambda: len(city.rejections(gateway)) == 5, "they are rejected")

    seen, path = [], f"/rejections?stream={no2}&reason=unit-mismatch&from=2020-01-01T00:00:00Z&limit=2"
    while path:
        page = city.get(path)
        seen += [one["record"] for one in page["value"]]
        path = page.get("nextLink")
    assert seen == [4, 3, 2, 1, 0]
    assert city.get(f"/rejections?stream={no2}&open=false")["value"] == []
    assert city.get(f"/rejections?stream={no2}&to=2020-01-01T00:00:00Z")["value"] == []
    open_ones = [
        line
        for line in city.http.get("/metrics").text.splitlines()
        if line.startswith("citylab_rejections_open{")
    ]
    assert any('reason="unit-mismatch"' in line and float(line.split()[-1]) >= 5 for line in open_ones)


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/ledger?gateway=nobody", 404, "no gateway 'nobody'"),
        ("/ledger?datastream=999999999", 404, "no Datastream 999999999"),
        ("/ledger?gatway=x", 400, "no parameter 'gatway'; did you mean 'gateway'?"),
        ("/ledger?from=2026-01-01T00:00:00Z", 400, "datastream"),
        ("/ledger?datastream=1&gateway=x", 400, "alone"),
        ("/ledger?datastream=1&from=yesterday", 400, "'yesterday' is no ISO 8601"),
        ("/ledger?after=x", 400, "nextLink"),
        ("/aggregates", 400, "datastream"),
        ("/aggregates?datastream=999999999", 404, "no Datastream"),
        ("/aggregates?datastream=1&width=PT90S", 400, "whole minutes"),
        ("/aggregates?datastream=1&points=5&fill=true", 400, "neither"),
        ("/aggregates?datastream=1&from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", 400, "before"),
        ("/aggregates?datastream=99999999999999999999", 400, "datastream"),
        ("/rejections?reason=because", 400, "reason"),
        ("/rejections/999999999", 404, "no rejection"),
        ("/rejections/x", 400, "id"),
        ("/rejections/replays/999999999", 404, "no request"),
    ],
)
def test_what_cannot_be_answered_is_said(city, path, status, says):
    code, message = refusal(city, path)

    assert code == status
    assert says in message


def test_windows_narrower_than_a_streams_interval_are_refused(city, gateway):
    name = f"{gateway}/hourly"
    city.register(gateway, thing(gateway, stream(name, interval="PT1H")))
    own = city.datastream(name)["@iot.id"]

    assert refusal(city, f"/aggregates?datastream={own}&width=minute") == (
        400, "the Datastream has a value every PT1H: no narrower windows are made",
    )  # fmt: skip
    assert refusal(city, f"/aggregates?datastream={own}&width=PT90M")[0] == 400
    assert refusal(city, "/rejections/replay", "POST")[0] == 400
    assert refusal(city, f"/rejections/replay?gateway={gateway}", "POST")[0] == 400  # nothing is open


def test_the_command_line_says_what_is_wrong_with_a_question(city):
    env = city.environment()
    for arguments, code, says in (
        (("ledger", "--gateway", "nobody"), 1, "no gateway 'nobody'"),
        (("ledger", "--datastream", "nobody"), 1, "no Datastream 'nobody'"),
        (("ledger", "--from", "2026-01-01T00:00:00Z"), 2, "--datastream"),
        (("ledger", "--datastream", "1", "--width", "fortnight"), 2, "whole minutes"),
        (("rejections", "show", "999999999"), 1, "no rejection"),
        (("rejections", "list", "--reason", "because"), 2, "unknown-stream"),
        (("rejections", "replay"), 2, "--gateway"),
    ):
        told = run(*arguments, env=env)
        assert (told.returncode, says in told.stderr, "Traceback" in told.stderr) == (code, True, False), (
            told.stderr
        )
