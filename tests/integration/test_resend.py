"""What the log has lost after it was acknowledged comes again, as far as the outbox still has it; the rest is told as gone."""

import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise

import msgspec
import pytest
from city_devices import Device, EdgeAgent, stream, thing

from citylab.model import SECOND, Batch, Event, Micros, Position, Topic
from citylab.outbound import outbound
from citylab.ports import START
from citylab.senml import identity
from citylab.writes import Receipt, bookkeeping
from processing.registration import status
from processing.resend import MOST_PACKS, ask_again

T0 = 1_767_225_600 * SECOND
ENDS = {0: 4, 1: 2}


class Log:
    """What is appended to an event log."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict]] = []

    async def append(self, topic: Topic, events: Sequence[object]) -> None:
        assert topic == Topic.OUTBOUND
        for event in events:
            body = msgspec.json.decode(event.value)
            assert event == outbound(
                f"citylab/v1/gateways/{event.key}/resend", event.value, now=event.time, gateway=event.key,
                expires_at=int(event.headers["expires-at"]),
            )  # fmt: skip
            self.asked.append((event.key, body))


async def says(
    store,
    *,
    last: int,
    pending=(),
    gone=(),
    state: str = "online",
    at: Micros = T0,
    ends=ENDS,
    epoch: int = 7,
):
    """A gateway's status arrives."""
    outbox = {"epoch": epoch, "last": last, "pending": list(pending), "gone": list(gone), "born": "x"}
    payload = msgspec.json.encode({"state": state, "outbox": outbox})
    before = (await store.positions(Topic.STATUS)).get(0, START)
    after = Position(before.offset + 1, b"%8d" % before.offset)
    header = {"gateway": "gw", "topic": "citylab/v1/gateways/gw/status"}
    event = Event(0, before.offset, "gw", payload, header, at)
    await status(store, Batch(Topic.STATUS, 0, before, [event], after), ends)


async def receives(store, *numbers: int) -> None:
    receipts = [Receipt("gw", 7, n, Topic.PACKS, 0, n, T0, 1) for n in numbers]
    await store.save(bookkeeping(receipts=receipts))


async def reads_up_to(store, ends) -> None:
    async with store.transaction() as transaction:
        for partition, offset in ends.items():
            await transaction.execute(
                "INSERT INTO positions VALUES ('processing', %s, %s, %s, '') ON CONFLICT (consumer, topic, partition)"
                ' DO UPDATE SET "offset" = excluded."offset"',
                (Topic.PACKS, partition, offset),
            )


async def test_only_what_is_nowhere_on_its_way_is_asked_for_and_only_once_the_log_is_read(store):
    log = Log()
    await receives(store, 1, 2, 5)
    await says(store, last=12, pending=[(8, 8), (11, 12)], gone=[(4, 4)])
    await reads_up_to(store, {0: 4, 1: 1})
    assert await ask_again(store, log, now=T0) == 0, "a partition is not read to the end that it had"

    await reads_up_to(store, ENDS)
    assert await ask_again(store, log, now=T0) == 1
    assert log.asked == [("gw", {"epoch": 7, "ranges": [[3, 3], [6, 7], [9, 10]]})]

    assert await ask_again(store, log, now=T0 + 86_400 * SECOND) == 0, "nothing new is known"


async def test_questions_come_ever_more_rarely_and_at_once_again_after_all_was_well(store):
    log, now, moments = Log(), T0, []
    await reads_up_to(store, ENDS)
    while now < T0 + 8 * 3_600 * SECOND:
        await says(store, last=2, at=now)
        if await ask_again(store, log, now=now):
            moments.append((now - T0) // SECOND)
        now += 30 * SECOND
    assert moments[:4] == [0, 30, 60, 120]
    assert len(moments) < 18
    assert max(b - a for a, b in pairwise(moments)) == 3_600

    await receives(store, 1, 2)
    now += 3_600 * SECOND
    await says(store, last=2, at=now)
    assert await ask_again(store, log, now=now) == 0
    await says(store, last=3, at=now + 1)
    assert await ask_again(store, log, now=now) == 1
    assert log.asked[-1] == ("gw", {"epoch": 7, "ranges": [[3, 3]]})


async def test_a_clock_that_was_put_back_lets_no_question_wait_for_it(store):
    log, later = Log(), T0 + 86_400 * SECOND
    await reads_up_to(store, ENDS)
    await says(store, last=2, at=later)
    assert await ask_again(store, log, now=later) == 1
    await says(store, last=2, at=T0)
    assert await ask_again(store, log, now=T0) == 1


@pytest.mark.parametrize("state", [{"state": "offline"}, {"last": 0}])
async def test_who_is_away_or_has_sent_nothing_is_not_asked(store, state):
    await reads_up_to(store, ENDS)
    await says(store, **({"last": 9} | state))
    assert await ask_again(store, Log(), now=T0) == 0


async def test_a_question_has_a_limit(store):
    log = Log()
    await reads_up_to(store, ENDS)
    await says(store, last=2**53 - 1)
    await ask_again(store, log, now=T0)
    assert log.asked == [("gw", {"epoch": 7, "ranges": [[1, MOST_PACKS]]})]


class LyingBridge:
    """Acknowledges what it does not append."""

    def __init__(self, url: str, gateway: str) -> None:
        self.root = f"citylab/v1/gateways/{gateway}"
        self.device = Device(url)
        self.device.listen(f"{self.root}/packs/numbered")

    def tell(self) -> int:
        """Acknowledge what came; return how many numbers that is."""
        numbers = {identity(payload) for topic, payload in list(self.device.heard) if "numbered" in topic}
        for epoch in {epoch for epoch, _ in numbers}:
            ranges = [[seq, seq] for of, seq in sorted(numbers) if of == epoch]
            body = msgspec.json.encode({"epoch": epoch, "appended": ranges})
            self.device.publish(f"{self.root}/acks", body)
        return len(numbers)


def stop(agent: EdgeAgent) -> None:
    agent.process.terminate()
    agent.process.wait(10)


def test_packs_that_were_acknowledged_and_lost_come_again_and_what_is_no_more_is_gone(own_city, gateway):
    city, lamp = own_city, thing("lamp", stream("lamp/a"))
    with EdgeAgent(city, gateway, lamp) as agent:
        agent.say("lamp/a", {0: 0})
        city.until(lambda: city.results("lamp/a") == [0], "the first reading is stored")
        city.kill("ingest")
        liar = LyingBridge(city.settings.broker_url, gateway)
        for n in range(1, 6):
            agent.say("lamp/a", {n: n})
            city.until(lambda n=n: liar.tell() == n, f"pack {n} is acknowledged, and lost")
        stop(agent)
    liar.device.close()
    with closing(sqlite3.connect(city.folder / "edge" / gateway / "outbox.db")) as outbox:
        outbox.execute(
            "UPDATE numbers SET pending = 0"
        )  # the last acknowledgement may have met an agent that ends
        for table in ("packs", "numbers"):
            outbox.execute(f"DELETE FROM {table} WHERE seq = 3")  # its space was needed
        outbox.commit()

    watcher = Device(city.settings.broker_url)
    watcher.listen(f"citylab/v1/gateways/{gateway}/resend")
    city.start("ingest")
    with EdgeAgent(city, gateway, lamp) as agent:
        city.until(lambda: city.results("lamp/a") == [0, 1, 3, 4, 5], "what the outbox has is stored")
        gone = (
            "SELECT gone::text, status -> 'outbox' -> 'gone' FROM outboxes o JOIN gateways ON name = gateway"
        )
        city.until(lambda: city.fetch(gone) == [("{[3,4)}", [[3, 3]])], "what it has not is gone")
        epoch = city.fetch("SELECT epoch FROM outboxes")[0][0]
        assert city.ledger(gateway, epoch)["received"] == "{[1,3),[4,7)}"
        assert city.ledger(gateway, epoch)["duplicate_packs"] == 0
        agent.say("lamp/a", {6: 6})
        city.until(lambda: city.results("lamp/a")[-1] == 6, "it goes on measuring")
        agent.end()
    assert [msgspec.json.decode(body)["ranges"] for _, body in watcher.heard] == [[[2, 6]]], "asked once"
    watcher.close()


DAY = 86_400  # readings, one a second


def test_after_a_day_without_a_broker_each_pack_is_stored_or_told_as_gone(own_city, gateway):
    city = own_city
    city.broker.stop()
    lamp = thing("lamp", stream("lamp/a"))
    with EdgeAgent(city, gateway, lamp, options=("--outbox-mib", 0.5, "--priority", "backlog")) as agent:
        agent.say("lamp/a", {second: second for second in range(DAY)})
        city.until(lambda: "the outbox is full" in agent.log_file.read_text(), "the outbox is full")
        city.broker.start()
        agent.end(60)
    numbers = (
        "SELECT last, (gone + received)::text, count FROM outboxes JOIN ledger USING (gateway, epoch), latest"
    )
    city.until(
        lambda: (found := city.fetch(numbers)) and found[0][1] == f"{{[1,{found[0][0] + 1})}}",
        "each number is gone or received",
    )
    ((last, _, stored),) = city.fetch(numbers)
    assert last >= DAY / 200
    assert 0 < stored < DAY / 2
    newest = city.fetch("SELECT extract(epoch FROM phenomenon_time)::bigint FROM latest")
    assert newest == [(T0 // SECOND + DAY - 1,)]
    assert city.fetch("SELECT (gone * received)::text FROM outboxes JOIN ledger USING (gateway, epoch)") == [
        ("{}",)
    ]


@pytest.mark.parametrize("own_city", ["embedded"], indirect=True)
def test_what_a_log_had_that_was_restored_from_an_older_copy_comes_again(own_city, gateway):
    city, lamp = own_city, thing("lamp", stream("lamp/a"))
    log = city.folder / "log"
    with EdgeAgent(city, gateway, lamp) as agent:
        agent.say("lamp/a", {0: 0})
        city.until(lambda: city.results("lamp/a") == [0], "the first reading is stored")
        for service in ("processing", "ingest"):
            city.kill(service)
        shutil.copytree(log, city.folder / "older", ignore=shutil.ignore_patterns("readers"))
        city.start("ingest")
        agent.say("lamp/a", {n: n for n in range(1, 900)})
        agent.end()  # all is acknowledged
    city.kill("ingest")
    shutil.rmtree(log)
    shutil.move(city.folder / "older", log)

    for service in ("ingest", "processing"):
        city.start(service)
    with EdgeAgent(city, gateway, lamp) as agent:
        city.until(lambda: city.results("lamp/a") == list(range(900)), "everything has come again")
        agent.end()
    assert city.fetch("SELECT count(*) FROM rejections") == [(0,)]
