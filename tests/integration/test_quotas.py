"""One gateway sends far more than its share, and takes nothing from the others."""

import sys
import time
from collections.abc import Iterator

import msgspec
import numpy as np
import psutil
import pytest
from city import KINDS, ROOT, City, new_city
from city_devices import T0, Device, EdgeAgent, stream, thing

GATEWAYS = 200
SHARE = 1_000  # times which the noisy one sends
ROUNDS = 5
RATE, SECONDS = 20_000, 1.0  # bytes/s
WAITS_AT_MOST = 5.0  # s, what the others' readings take on their way
MOST_TWICE = 50  # packs
MEMORY = 200  # MiB, what a service or the broker takes at most


@pytest.fixture(params=KINDS)
def quota_city(request) -> Iterator[City]:
    with new_city(request, quota_bytes=RATE, quota_seconds=SECONDS, pack_bytes=20_000) as city:
        yield city


def quiet_round(city: City, second: int) -> list[float]:
    """Every quiet gateway sends a reading; how long each takes until it is stored, in seconds."""
    sent = {}
    for n in range(1, GATEWAYS):
        pack = [{"epoch": 7, "seq": second + 1, "n": f"gw-{n}/a", "t": T0 + second, "v": second}]
        city.device.offer(f"{ROOT}/gw-{n}/packs/numbered", msgspec.json.encode(pack))
        sent[f"gw-{n}/a"] = time.monotonic()
    took: dict[str, float] = {}
    stored = (
        "SELECT d.stream_name FROM latest l JOIN datastreams d ON d.id = l.datastream_id WHERE l.count > %s"
    )

    def all_are_stored() -> bool:
        for (name,) in city.fetch(stored, second):
            if name in sent:
                took.setdefault(name, time.monotonic() - sent[name])
        return len(took) == len(sent)

    city.until(all_are_stored, "all quiet ones are stored")
    return list(took.values())


def quantiles(took: list[float]) -> str:
    p50, p99 = np.percentile(took, (50, 99)) * 1_000
    return f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, most {max(took) * 1_000:.0f} ms"


def appended(noise: Device) -> set[int]:
    """The numbers that it was told are in the log."""
    acks = [msgspec.json.decode(body) for name, body in noise.heard if name.endswith("acks")]
    return {n for ack in acks for first, last in ack["appended"] for n in range(first, last + 1)}


def memory(city: City) -> dict[str, int]:
    """What each service and the broker take, in MiB."""
    assert city.broker
    assert city.broker.process
    pids = {**city.pids(), "broker": city.broker.process.pid}
    return {name: psutil.Process(pid).memory_info().rss >> 20 for name, pid in pids.items()}


@pytest.mark.parametrize("numbered", [True, False], ids=["numbered", "unnumbered"])
def test_a_noisy_gateway_among_two_hundred_harms_no_other(quota_city, numbered):
    city = quota_city
    for n in range(GATEWAYS):
        city.descriptor(f"gw-{n}", thing(f"gw-{n}", stream(f"gw-{n}/a")))
    city.until(lambda: city.fetch("SELECT count(*) FROM datastreams") == [(GATEWAYS,)], "all are registered")
    alone = [took for second in range(ROUNDS) for took in quiet_round(city, second)]
    before = memory(city)

    noise = Device(city.settings.broker_url)
    topic = "citylab/v1/gateways/gw-0/packs" + ("/numbered" if numbered else "")
    noise.listen("citylab/v1/gateways/gw-0/acks")
    sent, beside = [], []
    for second in range(ROUNDS, 2 * ROUNDS):
        for n in range(SHARE):
            number = {"epoch": 7, "seq": len(sent) + 1} if numbered else {}
            pack = [number | {"n": "gw-0/a", "t": T0 + len(sent), "v": n}]
            sent.append(noise.offer(topic, msgspec.json.encode(pack)))
        beside += quiet_round(city, second)
    sys.stdout.write(f"alone {quantiles(alone)}; beside the noise {quantiles(beside)}\n")
    assert max(beside) < WAITS_AT_MOST
    after = memory(city)
    sys.stdout.write(f"MiB before {before}, after {after}\n")
    assert max(after.values()) < MEMORY
    whole = (
        "SELECT count(*) FROM ledger WHERE gateway <> 'gw-0' AND epoch = 7"
        " AND received = int8multirange(int8range(1, %s)) AND (stored, rejected) = (%s, 0)"
    )
    rounds = 2 * ROUNDS
    city.until(
        lambda: city.fetch(whole, rounds + 1, rounds) == [(GATEWAYS - 1,)], "the others' ledgers have all"
    )

    for one in sent:
        one.wait_for_publish(30)  # each has its PUBACK
    over = "SELECT sum((state ->> 'over_quota')::int)::int FROM services WHERE name LIKE 'ingest%%'"
    city.until(lambda: city.fetch(over) != [(None,)], "the bridge counts what was too much")
    ledger = "SELECT stored + duplicates, rejected FROM ledger WHERE gateway = 'gw-0'"
    if numbered:
        acks = [msgspec.json.decode(body) for name, body in noise.heard if name.endswith("acks")]
        assert max(ack.get("slow_down_until", 0) for ack in acks) > time.time() - 60
        # At least: rumqttd now and then gives a pack to a shared group twice.
        city.until(
            lambda: 0 <= city.fetch(over)[0][0] + len(appended(noise)) - len(sent) <= MOST_TWICE,
            "each pack is taken or counted",
        )
        stored = "SELECT stored, rejected FROM ledger WHERE gateway = 'gw-0'"
        city.until(lambda: city.fetch(stored) == [(len(appended(noise)), 0)], "what was taken is stored")
    else:
        city.until(lambda: city.fetch(over)[0][0] == city.fetch(ledger)[0][1], "each is rejected", within=60)
        city.until(
            lambda: sum(city.fetch(ledger)[0]) == len(sent), "each pack is stored or rejected", within=60
        )
        assert {one.reason for one in city.rejections("gw-0")} == {"over-quota"}
    assert city.fetch(over)[0][0] > SHARE
    counted = city.http.get("/metrics").text
    assert f'citylab_packs_over_quota_total{{gateway="gw-0"}} {city.fetch(over)[0][0]:.1f}' in counted
    noise.close()


def test_an_agent_over_its_quota_delivers_everything_in_the_end(quota_city, gateway):
    city = quota_city
    with EdgeAgent(city, gateway, thing("lamp", stream("lamp/a"))) as agent:
        agent.say("lamp/a", {n: n for n in range(6_000)})  # some 150 kB, of which 20 a second are taken
        began = time.monotonic()
        agent.end(120)
    over = "SELECT (state ->> 'over_quota')::int FROM services WHERE name LIKE 'ingest%%'"
    city.until(lambda: city.fetch(over)[0][0], "it was told to slow down")
    city.until(lambda: city.results("lamp/a") == list(range(6_000)), "every reading is stored")
    sys.stdout.write(f"{time.monotonic() - began:.1f} s, {city.fetch(over)[0][0]} packs sent too early\n")
    status = city.fetch("SELECT (status ->> 'throttled_ms')::int FROM gateways WHERE name = %s", gateway)
    assert status[0][0] > 0
