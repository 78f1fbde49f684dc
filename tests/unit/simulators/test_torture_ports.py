"""Ports that kill: at the point that is armed and no other, on the right side of what it is called after."""

import asyncio
import os
from typing import Any

import pytest

from citylab.model import Message, NewEvent, Topic
from simulators.torture_plan import KILL_POINTS, Arm
from simulators.torture_ports import HastyLog, KillingConnection, KillingLog, KillPoint


class Killed(Exception):
    """Instead of the end of the process that tests."""


class Port:
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    async def append(self, topic: Topic, events: list[NewEvent]) -> None:
        self.done.append((topic, len(events)))

    async def commit(self, *arguments: Any) -> None:
        self.done.append(arguments)

    async def messages(self, **_how: Any) -> list[Message]:
        return [Message("a/packs", b"", 1, False, 0, lambda: self.done.append("puback"))]

    def publish(self, topic: str, _payload: bytes, **_how: Any) -> int | None:
        self.done.append(topic)
        return 7


@pytest.fixture(autouse=True)
def killed(monkeypatch):
    def kill(pid: int, number: int) -> None:
        assert pid == os.getpid()
        raise Killed(number)

    monkeypatch.setattr("simulators.torture_ports.os.kill", kill)


EVENT = NewEvent("lamp", b"", {}, 0)


async def use(port: Port, kill: KillPoint) -> None:
    log, connection = KillingLog(port, kill), KillingConnection(port, kill)
    await log.append(Topic.PACKS, [EVENT])
    await log.append(Topic.UPDATES, [EVENT])
    await log.append(Topic.STATUS, [EVENT])
    await log.commit("group", Topic.OUTBOUND, {})
    for message in await connection.messages(most=1):
        message.ack()
    for topic in ("citylab/v1/gateways/lamp/acks", "citylab/v1/gateways/lamp/packs/numbered", "v1.1/Things"):
        assert connection.publish(topic, b"") == 7


WHOLE = 8  # things that `use` does


@pytest.mark.parametrize(
    ("what", "place"),
    [
        ("append", 0), ("update", 1), ("place", 3), ("puback", 4), ("acknowledgement", 5), ("pack", 6), ("publish", 7),
    ],
)  # fmt: skip
async def test_a_point_kills_on_its_side_and_is_written_down(tmp_path, what, place):
    for side, done in (("before", place), ("after", place + 1)):
        port, hits = Port(), tmp_path / side
        with pytest.raises(Killed):
            await use(port, KillPoint(Arm(f"{side} {what}", 1), hits))
        assert len(port.done) == done
        assert hits.read_text() == f"{side} {what}\n"


async def test_who_is_not_armed_or_not_yet_lives(tmp_path):
    for arm in (None, Arm("before append", 2), Arm("before something else", 1)):
        port = Port()
        await use(port, KillPoint(arm, tmp_path / "hits"))
        assert len(port.done) == WHOLE
    assert not (tmp_path / "hits").exists()


async def test_a_point_kills_when_it_is_reached_for_the_nth_time(tmp_path):
    port, kill = Port(), KillPoint(Arm("after append", 3), tmp_path / "hits")
    await use(port, kill)
    await use(port, kill)
    with pytest.raises(Killed):
        await use(port, kill)
    assert len(port.done) == 2 * WHOLE + 1


async def test_the_hasty_log_says_that_it_has_packs_before_it_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr("simulators.torture_ports.HASTE", 0.0)
    port = Port()
    log = HastyLog(port, KillPoint(None, tmp_path / "hits"))
    await log.append(Topic.PACKS, [EVENT])
    assert port.done == []
    async with asyncio.timeout(5):
        while not port.done:  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0)
    assert port.done == [(Topic.PACKS, 1)]


def test_every_planned_point_has_two_sides():
    for service, points in KILL_POINTS.items():
        sides = {point.partition(" ")[2]: set() for point in points}
        for point in points:
            side, _, what = point.partition(" ")
            sides[what].add(side)
        alone = {what for what, found in sides.items() if found != {"before", "after"}}
        assert alone == ({"commit"} if service == "processing" else set()), "after copy is before the commit"
