"""The outbox on a real disk: what is committed stays, whatever stops the process."""

import asyncio
import random
import signal
import sqlite3
import sys

import pytest

from citylab.errors import ConfigurationError, Unavailable
from citylab.model import LARGEST_NUMBER
from edge.outbox import Outbox, Pack, Priority


def pack(seq: int, size: int = 10, priority: Priority = Priority.LIVE) -> Pack:
    return Pack(seq, b"%d " % seq + b"x" * (size - 1 - len(str(seq))), priority)


async def test_packs_and_the_drivers_place_survive(tmp_path):
    async with Outbox(tmp_path, clock=lambda: 42) as outbox:
        assert (outbox.last, outbox.position, list(outbox.pending)) == (0, None, [])
        await outbox.append([pack(1), pack(2)], "page 1")
        await outbox.append([pack(3)], "page 2")
        outbox.acknowledge(1, 2)
        epoch = outbox.epoch

    async with Outbox(tmp_path) as outbox:
        assert (outbox.epoch, outbox.born, outbox.last, outbox.position) == (epoch, 42, 3, "page 2")
        assert outbox.pending.pairs() == [(3, 3)]
        assert await outbox.load([1, 3]) == {1: pack(1).payload, 3: pack(3).payload}
        assert outbox.unclean_stops == 0


async def test_an_epoch_is_drawn_for_each_new_outbox(tmp_path):
    epochs = set()
    for n in range(3):
        async with Outbox(tmp_path / str(n), draw=random.Random(n)) as outbox:
            epochs.add(outbox.epoch)
    assert len(epochs) == 3
    assert all(1 <= epoch <= LARGEST_NUMBER for epoch in epochs)


async def test_numbers_have_no_holes(tmp_path):
    async with Outbox(tmp_path) as outbox:
        await outbox.append([pack(1)], None)
        for wrong in ([pack(1)], [pack(3)], [pack(2), pack(4)]):
            with pytest.raises(ValueError, match="numbered on from 1"):
                await outbox.append(wrong, None)


async def test_what_append_returned_for_survives_a_kill(tmp_path):
    program = (
        "import asyncio, os, pathlib, signal, sys\n"
        "from edge.outbox import Outbox, Pack\n"
        "async def main():\n"
        "    async with Outbox(pathlib.Path(sys.argv[1])) as outbox:\n"
        "        n = outbox.last\n"
        "        await outbox.append([Pack(n + 1, b'one'), Pack(n + 2, b'two')], f'place {n}')\n"
        "        outbox.acknowledge(n + 1, n + 1)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(tmp_path))
        assert await process.wait() == -signal.SIGKILL

    async with Outbox(tmp_path) as outbox:
        assert (outbox.last, outbox.position, outbox.unclean_stops) == (4, "place 2", 2)
        assert outbox.pending.pairs() == [
            (1, 4)
        ]  # the acknowledgements were not yet on disk: they come again
        assert await outbox.load([3, 4]) == {3: b"one", 4: b"two"}


async def test_flushed_acknowledgements_survive_a_kill(tmp_path):
    outbox = await Outbox(tmp_path).__aenter__()
    await outbox.append([pack(1), pack(2)], None)
    outbox.acknowledge(1, 1)
    await outbox.flush()
    outbox._db.close()  # as a kill would

    async with Outbox(tmp_path) as outbox:
        assert outbox.pending.pairs() == [(2, 2)]


async def test_acknowledged_packs_stay_until_their_space_is_needed(tmp_path):
    async with Outbox(tmp_path, most_bytes=100) as outbox:
        await outbox.append([pack(n, 10) for n in range(1, 11)], None)
        outbox.acknowledge(1, 5)
        outbox.acknowledge(7, 7)
        await outbox.flush()
        assert len(await outbox.load(range(1, 11))) == 10

        given_up = await outbox.append([pack(11, 10), pack(12, 10)], None)

        assert given_up == []
        assert sorted(await outbox.load(range(1, 13))) == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
        assert outbox.stored == 100


async def test_without_space_the_oldest_of_the_lowest_priority_goes_and_is_recorded(tmp_path):
    async with Outbox(tmp_path, most_bytes=100) as outbox:
        priorities = [Priority.LIVE] * 4 + [Priority.BACKLOG] * 4
        await outbox.append([pack(n, 10, p) for n, p in enumerate(priorities, 1)], None)
        outbox.acknowledge(2, 2)

        assert await outbox.append([pack(n, 10) for n in range(9, 14)], None) == [(5, 6)]
        assert await outbox.append([pack(n, 10) for n in range(14, 18)], None) == [(1, 1), (3, 3), (7, 8)]

        assert outbox.gone.pairs() == [(1, 1), (3, 3), (5, 8)]
        assert outbox.pending.pairs() == [(4, 4), (9, 17)]

    async with Outbox(tmp_path, most_bytes=100) as outbox:
        assert outbox.gone.pairs() == [(1, 1), (3, 3), (5, 8)]
        assert outbox.pending.pairs() == [(4, 4), (9, 17)]
        assert outbox.stored == 100


async def test_a_full_disk_commits_nothing_and_frees_the_numbers(tmp_path):
    async with Outbox(tmp_path) as outbox:
        await outbox.append([pack(1)], "before")
        pages = outbox._db.execute("PRAGMA page_count").fetchone()[0]
        outbox._db.execute(f"PRAGMA max_page_count = {pages}")
        outbox.acknowledge(1, 1)

        with pytest.raises(Unavailable, match="full"):
            await outbox.append([pack(2, 100_000)], "after")

        assert (outbox.last, outbox.position) == (1, "before")
        outbox._db.execute("PRAGMA max_page_count = 1000000")
        await outbox.append([pack(2, 100_000)], "after")

    async with Outbox(tmp_path) as outbox:
        assert outbox.position == "after"
        assert outbox.pending.pairs() == [(2, 2)]


async def test_two_agents_cannot_use_one_outbox(tmp_path):
    async with Outbox(tmp_path):
        with pytest.raises(ConfigurationError, match="another agent uses it"):
            await Outbox(tmp_path).__aenter__()


async def test_a_damaged_outbox_says_what_to_do(tmp_path):
    (tmp_path / "outbox.db").write_bytes(b"this is no database " * 1_000)

    with pytest.raises(ConfigurationError, match="Move it away"):
        await Outbox(tmp_path).__aenter__()


async def test_an_outbox_of_a_later_version_is_left_alone(tmp_path):
    async with Outbox(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "outbox.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()

    with pytest.raises(ConfigurationError, match="its version is 99"):
        await Outbox(tmp_path).__aenter__()


async def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match="cannot open the outbox"):
        await Outbox(tmp_path / "file").__aenter__()


async def test_what_the_platform_has_lost_is_pending_again_and_what_is_not_kept_is_gone(tmp_path):
    async with Outbox(tmp_path, most_bytes=100) as outbox:
        await outbox.append([pack(n, 10) for n in range(1, 11)], None)
        outbox.acknowledge(1, 8)
        await outbox.append([pack(11, 10), pack(12, 10)], None)  # 1 and 2 make room
        outbox.acknowledge(9, 11)  # not yet on disk

        await outbox.reclaim(1, 4)
        await outbox.reclaim(7, 7)
        await outbox.reclaim(11, 10**9)

        assert outbox.pending.pairs() == [(3, 4), (7, 7), (11, 12)]
        assert outbox.gone.pairs() == [(1, 2)]

    async with Outbox(tmp_path, most_bytes=100) as outbox:
        assert outbox.pending.pairs() == [(3, 4), (7, 7), (11, 12)]
        assert outbox.gone.pairs() == [(1, 2)]
