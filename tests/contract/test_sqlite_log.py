"""What only the embedded event log promises: its files, their bound on disk, other processes, broken moments."""

import asyncio
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import aclosing, closing
from itertools import pairwise
from pathlib import Path

import pytest

from citylab.adapters.log_topics import Retention
from citylab.adapters.sqlite_log import SqliteLog
from citylab.errors import ConfigurationError, Unavailable
from citylab.model import DAY, HOUR, SECOND, NewEvent, Topic
from citylab.ports import START

PATIENCE = 30.0
APPENDER = Path(__file__).with_name("appender.py")


def small(folder: Path, *, most_bytes: int = 1 << 20, most_age: int = DAY, **options) -> SqliteLog:
    """A log in one partition, in files of 256 KiB."""
    retention = dict.fromkeys(Topic, Retention(most_bytes, most_age))
    return SqliteLog(folder, partitions=1, retention=retention, **({"segment_bytes": 256 << 10} | options))


def event(number: int, size: int = 0) -> NewEvent:
    return NewEvent("gw", b"%d" % number + bytes(size), {}, number)


def segments(folder: Path, topic: Topic = Topic.PACKS) -> list[Path]:
    return sorted(path for path in (folder / topic).glob("0*.sqlite"))


async def numbers(log: SqliteLog, count: int, **limits) -> list[int]:
    got: list[int] = []
    async with asyncio.timeout(PATIENCE), aclosing(log.read(Topic.PACKS, {0: START}, **limits)) as incoming:
        while len(got) < count:
            got += [int(e.value.rstrip(b"\0")) for e in (await anext(incoming)).events]
    return got


async def test_the_retention_unlinks_whole_files_and_bounds_the_disk(tmp_path):
    async with small(tmp_path) as log:
        for number in range(100):
            await log.append(Topic.PACKS, [event(number, size=40_000)])
            files = list((tmp_path / Topic.PACKS).iterdir())
            assert sum(path.stat().st_blocks * 512 for path in files if path.is_file()) < 3 << 20
        kept = segments(tmp_path)
        assert len(kept) > 1
        assert kept[0].name > "000000000001.sqlite"
    leftovers = [path.name for path in (tmp_path / Topic.PACKS).iterdir() if path not in kept]
    assert sorted(leftovers) == ["lock.sqlite"]


async def test_old_segments_go_when_newer_events_come(tmp_path):
    moment = 0
    clocks = {"clock": lambda: moment, "monotonic": lambda: moment / SECOND}
    async with small(tmp_path, most_age=8 * HOUR, **clocks) as log:
        for hour in range(40):
            moment = hour * HOUR
            await log.append(Topic.PACKS, [event(hour)])
        (end,) = (await log.ends(Topic.PACKS)).values()
        async with aclosing(log.read(Topic.PACKS, {0: START})) as incoming:
            first = (await anext(incoming)).before.offset
    assert end == 40
    assert 28 <= first <= 32, "a quiet topic is cut into pieces of an eighth of its age"


async def test_a_clock_that_is_put_forward_drops_nothing(tmp_path):
    moment = 0
    clocks = {"clock": lambda: moment, "monotonic": lambda: 0.0}
    async with small(tmp_path, most_age=8 * HOUR, most_bytes=1 << 30, **clocks) as log:
        for number in range(10):
            moment = number * DAY
            await log.append(Topic.PACKS, [event(number)])
        assert len(segments(tmp_path)) > 5
        assert await numbers(log, 10) == list(range(10))


async def test_the_segment_that_is_written_is_never_dropped(tmp_path):
    moment = 0
    async with small(tmp_path, most_bytes=1, clock=lambda: moment) as log:
        await log.append(Topic.PACKS, [event(1, size=500_000)])
    moment = 100 * DAY
    async with small(tmp_path, most_bytes=1, clock=lambda: moment) as log:
        assert await numbers(log, 1) == [1]


async def test_batches_reach_across_segments(tmp_path):
    async with small(tmp_path, most_bytes=1 << 30) as log:
        for number in range(60):
            await log.append(Topic.PACKS, [event(number, size=30_000)])
        assert len(segments(tmp_path)) >= 6
        assert await numbers(log, 60, most=7) == list(range(60))
        batches = []
        async with aclosing(log.read(Topic.PACKS, {0: START}, most=7)) as incoming:
            while sum(len(batch.events) for batch in batches) < 60:
                batches.append(await anext(incoming))
        assert all(one.after == other.before for one, other in pairwise(batches))
        for batch in batches:
            async with aclosing(log.read(Topic.PACKS, {0: batch.before}, most=7)) as incoming:
                assert await anext(incoming) == batch


async def test_a_lock_that_somebody_holds_makes_the_log_unavailable_for_that_time(tmp_path):
    async with small(tmp_path, busy_seconds=0.1) as log:
        await log.append(Topic.PACKS, [event(0)])
        with closing(sqlite3.connect(segments(tmp_path)[-1], isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable, match="locked"):
                await log.append(Topic.PACKS, [event(-1)])
            assert await numbers(log, 1) == [0], "readers are not concerned"
        await log.append(Topic.PACKS, [event(1)])
        assert await numbers(log, 2) == [0, 1]


async def test_a_crash_between_sealing_and_the_next_segment_is_made_good(tmp_path):
    async with small(tmp_path) as log:
        await log.append(Topic.PACKS, [event(0)])
    with closing(sqlite3.connect(segments(tmp_path)[-1])) as crashed, crashed:
        crashed.execute("UPDATE segment SET sealed_at = created_at")
    async with small(tmp_path) as log:
        assert await log.ends(Topic.PACKS) == {0: 1}
        async with aclosing(log.read(Topic.PACKS, {0: START}, most=1)) as incoming:
            first = await anext(incoming)
            await log.append(Topic.PACKS, [event(1)])
            second = await asyncio.wait_for(anext(incoming), PATIENCE)
    assert second.before == first.after
    assert len(segments(tmp_path)) == 2


def killed_after(folder: Path, key: str, count: int, environment: Mapping[str, str]) -> int:
    """The last number that a writer said was durable before it was killed."""
    command = [sys.executable, APPENDER, f"sqlite:{folder}", key, "forever"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for _ in range(count):
            process.stdout.readline()
        process.kill()
        return count - 2 + process.stdout.read().count("\n")


async def test_writers_killed_at_any_moment_lose_nothing_across_segments(tmp_path):
    environment = os.environ | {"CITYLAB_TEST_SEGMENT_BYTES": "1"}  # a new segment for each append
    said = [killed_after(tmp_path, f"gw-{round_}", 20 + 3 * round_, environment) for round_ in range(6)]
    async with SqliteLog(tmp_path) as log:
        ends = await log.ends(Topic.PACKS)
        got: dict[str, list[int]] = {}
        async with (
            asyncio.timeout(PATIENCE),
            aclosing(log.read(Topic.PACKS, dict.fromkeys(ends, START))) as incoming,
        ):
            while sum(map(len, got.values())) < sum(ends.values()):
                for e in (await anext(incoming)).events:
                    got.setdefault(e.key, []).append(int(e.value))
    for round_, last in enumerate(said):
        those = got[f"gw-{round_}"]
        assert those == list(range(len(those)))
        assert len(those) > last
    assert len(segments(tmp_path)) >= sum(map(len, got.values()))


def append_five(url: str, key: str) -> subprocess.Popen[str]:
    command = [sys.executable, APPENDER, url, key, "asked"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def test_several_processes_may_make_the_log_at_once(tmp_path):
    url = f"sqlite:{tmp_path / 'log'}"
    processes = [append_five(url, f"gw-{number}") for number in range(4)]
    for process in processes:
        said, _ = await asyncio.to_thread(process.communicate, "\n" * 5, timeout=60)
        assert said.split() == ["ready", "0", "1", "2", "3", "4"]
    async with SqliteLog(tmp_path / "log") as log:
        assert sum((await log.ends(Topic.PACKS)).values()) == 20


async def test_sockets_of_killed_readers_are_removed(tmp_path):
    async with small(tmp_path) as log:
        readers = tmp_path / Topic.PACKS / "readers"
        readers.mkdir()
        dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        dead.bind(str(readers / "dead"))
        dead.close()
        await log.append(Topic.PACKS, [event(0)])
    assert list(readers.iterdir()) == [], "after closing nobody rings any more"


async def test_a_reader_in_a_folder_with_a_long_name_is_woken_too(tmp_path):
    folder = tmp_path / ("long" * 40)
    async with small(folder) as log, aclosing(log.read(Topic.PACKS, {0: START})) as incoming:
        began = time.monotonic()
        for number in range(10):
            reader = asyncio.create_task(anext(incoming))
            await asyncio.wait([reader], timeout=0.05)
            await log.append(Topic.PACKS, [event(number)])
            await asyncio.wait_for(reader, PATIENCE)
    assert time.monotonic() - began < 5, "looking once a second takes ten seconds"


async def test_a_log_whose_files_were_taken_away_says_so(tmp_path):
    async with small(tmp_path / "log") as log:
        await log.append(Topic.PACKS, [event(0)])
        shutil.rmtree(tmp_path / "log")
        with pytest.raises(Unavailable, match="removed"):
            await log.append(Topic.PACKS, [event(1)])
        with pytest.raises(Unavailable):
            await log.ends(Topic.PACKS)


async def test_files_of_another_format_are_not_touched(tmp_path):
    async with small(tmp_path):
        pass
    with closing(sqlite3.connect(segments(tmp_path)[-1])) as future:
        future.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigurationError, match="use the version that wrote it"):
        async with small(tmp_path):
            pass


async def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable):
        async with small(tmp_path / "file" / "log"):
            pass
