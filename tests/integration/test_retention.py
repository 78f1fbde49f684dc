"""Processing is stopped while the log's small retention fills: it is said before anything is lost, and what is lost is said."""

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from city import KINDS, City, new_city, run
from city_devices import T0, stream, thing

NAME = "lamp/a"
RECORDS = 400  # in a pack, of some 25 KB
STEP = 4  # packs, a tenth of what the log may have


@pytest.fixture(params=KINDS)
def small_city(request) -> Iterator[City]:
    """A city whose log keeps a MiB of packs, in one partition."""
    with new_city(request, retention_bytes=1 << 20, partitions=1) as city:
        yield city


def check(city: City, name: str = "log: citylab.packs") -> dict[str, Any] | None:
    checks = city.http.get("/health/ready").json()["checks"]
    return next((one for one in checks if one["name"] == name), None)


def send(city: City, count: int, first: int = 0) -> None:
    draw = Random(first)
    for number in range(first, first + count):
        start = T0 + number * RECORDS
        records = [{"n": NAME, "t": start + second, "v": draw.random()} for second in range(RECORDS)]
        city.pack("lamp", *records, epoch=1, seq=number + 1)


def metric(city: City, name: str) -> float:
    lines = city.http.get("/metrics").text.splitlines()
    return float(
        next(line.split()[-1] for line in lines if line.startswith(f'{name}{{topic="citylab.packs"'))
    )


def stored(city: City) -> int:
    ((count,),) = city.fetch("SELECT count(*) FROM observations")
    return count


def test_a_stopped_reader_is_warned_of_before_anything_is_lost(small_city):
    city = small_city
    city.register("lamp", thing("lamp", stream(NAME)))
    assert check(city) is None
    city.kill("processing")

    def send_until_it_is_said(first: int, *, ok: bool) -> int:
        for number in range(first, first + 120, STEP):
            before = metric(city, "citylab_log_behind_ratio")
            send(city, STEP, number)
            city.until(lambda b=before: metric(city, "citylab_log_behind_ratio") != b, "the log is looked at")
            found = check(city)
            if found and found["ok"] is ok:
                assert found["warn"] is ok
                assert "CITYLAB_RETENTION_DAYS" in found["detail"]
                return number + STEP
        raise AssertionError(f"nobody says it: {found}")

    warned = send_until_it_is_said(0, ok=True)
    sent = send_until_it_is_said(warned, ok=False)
    assert metric(city, "citylab_log_behind_ratio") >= 0.8
    assert metric(city, "citylab_log_bytes") > 0
    doctor = run("doctor", env=city.environment())
    assert doctor.returncode == 1
    assert "FAIL retention: citylab.packs: what processing has not read" in doctor.stdout

    city.start("processing")

    city.until(lambda: stored(city) == sent * RECORDS, "all that was sent is stored", 60)
    city.until(lambda: check(city) is None and city.is_well(), "all is well again")
    assert run("doctor", env=city.environment()).returncode == 0


@pytest.mark.parametrize(
    "small_city", ["embedded"], indirect=True
)  # Kafka's retention looks every five minutes
def test_what_was_lost_is_said_until_an_operator_has_taken_note(small_city):
    city = small_city
    city.register("lamp", thing("lamp", stream(NAME)))
    send(city, 1)
    city.until(lambda: stored(city) == RECORDS, "the first pack is stored")
    city.kill("processing")
    send(city, 200, 1)
    lost = city.until(
        lambda: (check(city) or {}).get("detail", "").partition("were removed")[0], "it is said"
    )
    assert int(lost.split()[0].replace(",", "")) > 0

    city.start("processing")
    city.until(lambda: check(city, "processing: packs"), "processing stops there")
    running = run("positions", "reset", "--yes", env=city.environment())
    assert (running.returncode, "stop it first" in running.stderr) == (2, True)
    city.kill("processing")
    city.until(
        lambda: (
            run("positions", "reset", "--yes", "--topic", "citylab.packs", env=city.environment()).returncode
            == 0
        ),
        "processing counts as stopped",
    )
    city.start("processing")

    unread = "unread in citylab.packs/0"
    city.until(lambda: check(city, unread), "what went unread is said")
    city.until(lambda: check(city) is None, "processing has caught up")
    assert RECORDS < stored(city) < 201 * RECORDS
    city.restart("processing")
    city.until(lambda: check(city, "lag"), "processing is back")
    assert check(city, unread), "also after a restart"
    assert unread.removeprefix("unread in ") in run("positions", "show", env=city.environment()).stdout

    assert run("positions", "acknowledge", env=city.environment()).returncode == 0

    assert check(city, unread) is None
    city.until(city.is_well, "all is well")
