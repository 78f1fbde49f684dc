"""What `EventLog` promises, on the embedded log and on Kafka."""

import asyncio
import random
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import aclosing, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from citylab.adapters.log_places import fingerprint
from citylab.errors import PositionLost
from citylab.model import DAY, Batch, Event, NewEvent, Position, Topic
from citylab.ports import START

PATIENCE = 30.0  # s until a test gives up on something that should happen soon
NOW = 1_772_000_000_123_456  # µs: its last digits are lost on a log that keeps milliseconds


def event(number: int, key: str = "gw", size: int = 0) -> NewEvent:
    return NewEvent(key, b"%d" % number if not size else b"x" * size, {"seq": str(number)}, NOW + number)


async def everywhere(log, topic=Topic.PACKS) -> dict[int, Position]:
    return dict.fromkeys(await log.partitions(topic), START)


async def read(log, count: int, start=None, topic=Topic.PACKS, **limits) -> list[Batch]:
    """The batches of the next `count` events, which must be there or come."""
    batches: list[Batch] = []
    start = start or await everywhere(log, topic)
    async with asyncio.timeout(PATIENCE), aclosing(log.read(topic, start, **limits)) as incoming:
        while sum(len(batch.events) for batch in batches) < count:
            batches.append(await anext(incoming))
    assert sum(len(batch.events) for batch in batches) == count
    return batches


async def events_of(log, count: int, **how) -> list[Event]:
    return [event for batch in await read(log, count, **how) for event in batch.events]


def one_partition(batches: list[Batch]) -> int:
    (partition,) = {batch.partition for batch in batches}
    return partition


@contextmanager
def appender(engine, key: str, mode: str):
    """A process that appends, ready to go; killed at the end."""
    script = Path(__file__).with_name("appender.py")
    process = subprocess.Popen(
        [sys.executable, "-W", "error", script, engine.url, key, mode],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_an_event_comes_back_as_it_was_appended(log):
    headers = {
        "gateway": "gw",
        "content-type": "application/senml+json",
        "ort": "Zürich",
        "名": "値",
        "empty": "",
    }
    sent = NewEvent("straße/名", bytes(range(256)), headers, NOW)

    await log.append(Topic.PACKS, [sent])

    (got,) = await events_of(log, 1)
    assert (got.key, got.value, got.headers, got.time) == tuple(sent)
    assert got.offset == 0


@pytest.mark.parametrize("size", [1, 256 << 10, 4 << 20])
async def test_large_events_pass(log, size):
    value = bytes(size)

    await log.append(Topic.PACKS, [event(1), NewEvent("gw", value, {}, 2), event(3)])

    assert [e.value for e in await events_of(log, 3)] == [b"1", value, b"3"]


async def test_values_of_no_bytes_pass(log):
    await log.append(Topic.PACKS, [NewEvent("gw", b"", {}, 0), NewEvent("", b"", {}, 0)])

    assert [e.value for e in await events_of(log, 2)] == [b"", b""]
    assert {e.key for e in await events_of(log, 2)} == {"", "gw"}


async def test_a_value_beyond_the_limit_is_refused_before_anything_is_appended(log):
    with pytest.raises(ValueError, match="4194304 are the most"):
        await log.append(Topic.PACKS, [event(1), event(2, size=(4 << 20) + 1)])

    assert set((await log.ends(Topic.PACKS)).values()) == {0}


async def test_appending_nothing_does_nothing(log):
    await log.append(Topic.PACKS, [])

    assert set((await log.ends(Topic.PACKS)).values()) == {0}


async def test_one_key_stays_in_one_partition_in_the_order_of_append(log):
    keys = [f"gw-{number}" for number in range(12)]
    for round_ in range(5):
        await log.append(Topic.PACKS, [event(10 * round_ + n, key) for n in range(10) for key in keys])

    partitions, numbers = defaultdict(set), defaultdict(list)
    for got in await events_of(log, 12 * 50):
        partitions[got.key].add(got.partition)
        numbers[got.key].append(int(got.value))
    assert all(len(those) == 1 for those in partitions.values())
    assert all(numbers[key] == list(range(50)) for key in keys)
    assert len(set.union(*partitions.values())) == 4, "twelve keys should fill four partitions"


async def test_appends_that_overlap_keep_the_order_of_the_calls(log):
    await asyncio.gather(*(log.append(Topic.PACKS, [event(number)]) for number in range(300)))

    assert [int(e.value) for e in await events_of(log, 300)] == list(range(300))


async def test_only_packs_are_split_into_partitions(log):
    assert list(await log.partitions(Topic.PACKS)) == [0, 1, 2, 3]
    for topic in set(Topic) - {Topic.PACKS}:
        assert list(await log.partitions(topic)) == [0]


async def test_topics_do_not_mix(log):
    for number, topic in enumerate(Topic):
        await log.append(topic, [event(number)])

    for number, topic in enumerate(Topic):
        assert [int(e.value) for e in await events_of(log, 1, topic=topic)] == [number]


async def test_offsets_count_from_zero_and_ends_say_the_next(log):
    await log.append(Topic.STATUS, [event(number) for number in range(7)])
    await log.append(Topic.STATUS, [event(7)])

    assert [e.offset for e in await events_of(log, 8, topic=Topic.STATUS)] == list(range(8))
    assert await log.ends(Topic.STATUS) == {0: 8}


async def test_what_was_appended_is_there_after_opening_again(engine):
    async with engine.log() as log:
        await log.append(Topic.PACKS, [event(number) for number in range(10)])
    async with engine.log() as log:
        await log.append(Topic.PACKS, [event(10)])
        assert [int(e.value) for e in await events_of(log, 11)] == list(range(11))


async def test_an_existing_log_keeps_its_number_of_partitions(engine):
    async with engine.log(partitions=2):
        pass
    async with engine.log(partitions=4) as log:
        assert list(await log.partitions(Topic.PACKS)) == [0, 1]


async def test_a_killed_writer_loses_nothing_that_append_returned_for(engine):
    with appender(engine, "gw", "forever") as process:
        said = [int(process.stdout.readline()) for _ in range(200)]
        process.kill()
        said += [int(line) for line in process.stdout.read().split("\n")[:-1]]

    async with engine.log() as log:
        await log.append(Topic.PACKS, [event(-1)])
        end = max((await log.ends(Topic.PACKS)).values())
        *numbers, last = [int(e.value) for e in await events_of(log, end)]
    assert last == -1
    assert numbers == list(range(len(numbers)))
    assert said == numbers[: len(said)]
    assert len(numbers) - len(said) <= 1, "at most the one that was on its way"


async def test_two_processes_append_at_the_same_time(engine):
    async with engine.log(partitions=1) as log:
        with appender(engine, "a", "forever") as one, appender(engine, "b", "forever") as other:
            for _ in range(150):
                assert one.stdout.readline()
                assert other.stdout.readline()
        end = max((await log.ends(Topic.PACKS)).values())
        got = await events_of(log, end)
    assert [e.offset for e in got] == list(range(end))
    for key in "ab":
        numbers = [int(e.value) for e in got if e.key == key]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= 150


async def test_batches_chain_up(log):
    keys = [f"gw-{number}" for number in range(8)]
    for round_ in range(6):
        await log.append(Topic.PACKS, [event(round_, key) for key in keys])

    batches = await read(log, 48, most=5)

    by_partition = defaultdict(list)
    for batch in batches:
        assert 1 <= len(batch.events) <= 5
        assert batch.topic is Topic.PACKS
        assert {e.partition for e in batch.events} == {batch.partition}
        assert [e.offset for e in batch.events] == list(range(batch.before.offset, batch.after.offset))
        last = batch.events[-1]
        assert batch.after.fingerprint == fingerprint(last.offset, last.time, last.key, last.value)
        by_partition[batch.partition].append(batch)
    for chain in by_partition.values():
        assert chain[0].before == START
        assert all(one.after == other.before for one, other in pairwise(chain))


async def test_reading_goes_on_at_any_event(log):
    for start in range(0, 30, 3):
        await log.append(Topic.PACKS, [event(number) for number in range(start, start + 3)])
    batches = await read(log, 30, most=1)
    partition = one_partition(batches)

    for number, batch in enumerate(batches):
        rest = await read(log, 30 - number, start={partition: batch.before})
        assert rest[0].before == batch.before
        assert [int(e.value) for part in rest for e in part.events] == list(range(number, 30))


async def test_a_batch_ends_at_its_bytes(log):
    sizes = [100, 100, 1_000, 50_000, 100, 100]
    await log.append(Topic.STATUS, [event(0, size=size) for size in sizes])

    batches = await read(log, 6, topic=Topic.STATUS, most_bytes=1_000)

    assert [[len(e.value) for e in batch.events] for batch in batches] == [
        [100, 100],
        [1_000],
        [50_000],
        [100, 100],
    ]


async def test_no_partition_waits_for_another_to_end(log):
    keys = [f"gw-{number}" for number in range(12)]
    await log.append(Topic.PACKS, [event(n, key, size=2_000) for n in range(50) for key in keys])

    batches = await read(log, 600, most=10)

    seen: dict[int, int] = {}
    for index, batch in enumerate(batches):
        seen.setdefault(batch.partition, index)
    assert len(seen) == 4


async def test_only_the_partitions_asked_for_are_read(log):
    keys = [f"gw-{number}" for number in range(12)]
    await log.append(Topic.PACKS, [event(1, key) for key in keys])
    ends = await log.ends(Topic.PACKS)

    batches = await read(log, ends[1] + ends[3], start={1: START, 3: START})

    assert {batch.partition for batch in batches} == {1, 3}


async def test_a_reader_of_an_empty_log_wakes_at_an_append(log):
    async with aclosing(log.read(Topic.PACKS, await everywhere(log))) as incoming:
        reader = asyncio.create_task(anext(incoming))
        await log.append(Topic.PACKS, [event(1)])
        batch = await asyncio.wait_for(reader, PATIENCE)
    assert batch.before == START
    assert [int(e.value) for e in batch.events] == [1]


async def test_a_reader_is_woken_by_another_process_without_polling(engine):
    async with engine.log() as log, aclosing(log.read(Topic.PACKS, await everywhere(log))) as incoming:
        with appender(engine, "gw", "asked") as process:
            process.stdin.write("\n")
            await asyncio.wait_for(anext(incoming), PATIENCE)
            began = time.monotonic()
            for number in range(1, 11):
                reader = asyncio.create_task(anext(incoming))
                process.stdin.write("\n")
                batch = await asyncio.wait_for(reader, PATIENCE)
                assert [int(e.value) for e in batch.events] == [number]
    assert time.monotonic() - began < 5, "ten wake-ups; looking once a second takes ten seconds"


def kill_a_reader(url: str) -> None:
    """Start a process that reads, and kill it once it does."""
    code = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from appender import log_at, say
from citylab.model import Topic
from citylab.ports import START
async def main():
    async with log_at({url!r}) as log:
        async for batch in log.read(Topic.PACKS, dict.fromkeys(range(4), START)):
            say("reading")
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as reader:
        said = reader.stdout.readline()
        reader.kill()
    assert said == "reading\n"


async def test_a_reader_that_was_killed_does_not_hurt_the_writer(log, engine):
    await log.append(Topic.PACKS, [event(0)])

    await asyncio.to_thread(kill_a_reader, engine.url)

    for number in range(1, 5):
        await log.append(Topic.PACKS, [event(number)])
    assert [int(e.value) for e in await events_of(log, 5)] == list(range(5))


async def test_a_position_of_another_log_is_lost(log):
    await log.append(Topic.STATUS, [event(number) for number in range(5)])

    for foreign in [b"", bytes(8), fingerprint(2, NOW + 2, "gw", b"something else")]:
        with pytest.raises(PositionLost, match="another log") as caught:
            await read(log, 1, start={0: Position(3, foreign)}, topic=Topic.STATUS)
        assert (caught.value.topic, caught.value.partition) == (Topic.STATUS, 0)


async def test_a_position_beyond_the_end_is_lost(log):
    await log.append(Topic.STATUS, [event(number) for number in range(5)])

    with pytest.raises(PositionLost, match="ends at offset 5, before 6"):
        await read(log, 1, start={0: Position(6, bytes(8))}, topic=Topic.STATUS)


async def test_a_partition_that_does_not_exist_is_lost(log):
    with pytest.raises(PositionLost, match="partitions"):
        await read(log, 1, start={7: START})


async def test_a_position_that_the_retention_removed_is_lost(engine):
    async with engine.small_log() as log:
        await log.append(Topic.PACKS, [event(number) for number in range(5)])
        (early,) = await read(log, 5)
        await engine.outgrow(log)

        with pytest.raises(PositionLost, match="retention"):
            await read(log, 1, start={0: early.after})


async def test_no_position_means_the_start_even_if_the_retention_moved_it(engine):
    async with engine.small_log() as log:
        await engine.outgrow(log)
        async with asyncio.timeout(PATIENCE), aclosing(log.read(Topic.PACKS, {0: START}, most=3)) as incoming:
            first, second = await anext(incoming), await anext(incoming)
        assert first.before.offset > 0, "which says that older events are gone"
        assert first.events[0].offset == first.before.offset
        assert second.before == first.after

        for known in (first.before, first.after):
            again = await read(log, 1, start={0: known}, most=1)
            assert again[0].before == known


async def test_a_reader_that_the_retention_overtakes_is_told(engine):
    async with engine.small_log() as log:
        await log.append(Topic.PACKS, [event(number) for number in range(5)])
        async with asyncio.timeout(PATIENCE), aclosing(log.read(Topic.PACKS, {0: START}, most=5)) as incoming:
            at = (await anext(incoming)).after
            await engine.outgrow(log)

            with pytest.raises(PositionLost, match="retention"):
                await follow(incoming, at)


async def follow(incoming, at: Position) -> None:
    async for batch in incoming:
        assert batch.before == at, "nothing is jumped over in silence"
        at = batch.after


async def test_how_near_the_retention_is_to_what_is_unread(engine):
    async with engine.small_log() as log:
        empty = await log.kept({Topic.PACKS: {}}, now=NOW)
        assert empty.keys() == set(Topic)
        assert empty[Topic.PACKS][1:] == (None, 0.0, 0)

        def large(number: int) -> NewEvent:
            """Of bytes that cannot be compressed."""
            return NewEvent("gw", random.Random(number).randbytes(64 << 10), {}, NOW)

        await log.append(Topic.PACKS, [large(number) for number in range(4)])
        (batch,) = await read(log, 4)
        found = await log.kept({Topic.PACKS: {}, Topic.STATUS: {}}, now=NOW + 2 * DAY)
        packs = found[Topic.PACKS]
        assert packs.oldest == NOW
        assert packs.behind == pytest.approx(2.0), "it keeps a day"
        assert packs.lost == 0
        assert packs.bytes > 0
        assert found[Topic.STATUS].behind == 0, "nothing is unread there"
        after = {Topic.PACKS: {0: batch.after}}
        assert (await log.kept(after, now=NOW + 2 * DAY))[Topic.PACKS].behind == 0, "all is read"
        assert (await log.kept({}, now=NOW + 2 * DAY))[Topic.PACKS].behind == 0, "nobody reads"

        for number in range(6):
            await log.append(Topic.PACKS, [large(number)])
        fuller = (await log.kept(after, now=NOW))[Topic.PACKS]
        assert fuller.bytes > packs.bytes
        assert 0.37 < fuller.behind < 1, "384 KiB of a MiB, and what files have beside it"


async def test_what_the_retention_took_unread_is_counted(engine):
    async with engine.small_log() as log:
        await log.append(Topic.PACKS, [event(number) for number in range(5)])
        (early,) = await read(log, 5)
        await engine.outgrow(log)

        async with aclosing(log.read(Topic.PACKS, {0: START}, most=1)) as incoming:
            begin = (await anext(incoming)).before.offset
        found = await log.kept({Topic.PACKS: {0: early.after}}, now=NOW)

        assert found[Topic.PACKS].lost == begin - 5 > 0


async def test_a_log_that_exists_gets_the_retention_that_is_set(engine):
    async with engine.log(partitions=1) as log:
        for number in range(20):
            await log.append(Topic.PACKS, [event(number, size=128 << 10)])
        large = (await log.kept({}, now=NOW))[Topic.PACKS].bytes

    async with engine.small_log(only_looks=True) as log:
        assert (await events_of(log, 1, most=1))[0].offset == 0, "who only looks sets nothing"
        if hasattr(engine, "settings"):
            assert (await engine.settings("packs"))["retention.ms"] == str(7 * DAY // 1_000_000 * 1_000)
    async with engine.small_log() as log:
        if hasattr(engine, "settings"):  # Kafka, which looks too rarely for a test's patience
            settings = await engine.settings("packs")
            assert (settings["retention.ms"], settings["retention.bytes"]) == ("86400000", str(1 << 20))
            return
        await log.append(Topic.PACKS, [event(20)])
        assert (await log.kept({}, now=NOW))[Topic.PACKS].bytes < large / 2


async def test_the_tail_is_where_the_next_event_will_be(log):
    assert await log.tail(Topic.PACKS) == await everywhere(log)
    await log.append(Topic.PACKS, [event(number) for number in range(5)])
    tail = await log.tail(Topic.PACKS)

    await log.append(Topic.PACKS, [event(5)])

    assert [int(e.value) for e in await events_of(log, 1, start=tail)] == [5]
    assert {p: position.offset for p, position in (await log.tail(Topic.PACKS)).items()} == await log.ends(
        Topic.PACKS
    )


async def test_a_group_keeps_its_place(engine):
    async with engine.log() as log:
        await log.append(Topic.PACKS, [event(1, f"gw-{number}") for number in range(20)])
        assert await log.committed("live", Topic.PACKS) == {}
        tail = await log.tail(Topic.PACKS)
        some = {partition: tail[partition] for partition in (0, 2)}

        await log.commit("live", Topic.PACKS, some)
        await log.commit("live", Topic.UPDATES, {0: START})
        await log.commit("other", Topic.PACKS, {1: Position(1, b"12345678")})
        await log.commit("live", Topic.PACKS, {3: tail[3]})

        assert await log.committed("live", Topic.PACKS) == some | {3: tail[3]}
        assert await log.committed("live", Topic.UPDATES) == {0: START}
    async with engine.log() as log:
        assert await log.committed("live", Topic.PACKS) == some | {3: tail[3]}
        assert await log.committed("other", Topic.PACKS) == {1: Position(1, b"12345678")}
        await log.commit("live", Topic.PACKS, {3: START})
        assert (await log.committed("live", Topic.PACKS))[3] == START, "a group may go back"


async def test_a_cancelled_reader_leaves_the_log_usable(log):
    for _ in range(5):
        async with aclosing(log.read(Topic.PACKS, await everywhere(log))) as incoming:
            reader = asyncio.create_task(anext(incoming))
            await asyncio.wait([reader], timeout=0.02)
            reader.cancel()
            await asyncio.wait([reader])
            assert reader.cancelled()
    await log.append(Topic.PACKS, [event(1)])
    assert [int(e.value) for e in await events_of(log, 1)] == [1]


async def test_a_cancelled_append_leaves_the_log_usable(log):
    for wait in (0, 0.001, 0.002):
        appending = asyncio.create_task(log.append(Topic.PACKS, [event(0, size=100_000)]))
        await asyncio.wait([appending], timeout=wait)
        appending.cancel()
        await asyncio.wait([appending])
    await log.append(Topic.PACKS, [event(1)])

    (partition,) = [p for p, end in (await log.ends(Topic.PACKS)).items() if end]
    end = (await log.ends(Topic.PACKS))[partition]
    got = await events_of(log, end, start={partition: START})
    assert int(got[-1].value) == 1
    assert len(got) <= 4


async def test_closing_finishes_what_was_accepted(engine):
    async with engine.log() as log:
        waiting = [asyncio.create_task(log.append(Topic.PACKS, [event(number)])) for number in range(50)]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    async with engine.log() as log:
        assert [int(e.value) for e in await events_of(log, 50)] == list(range(50))
