"""The workers of processing and their shares, on a store: one is dead when it beats no more, and nobody is in charge."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from citylab.services import processing_name, together
from processing.workers import Share, Workers, put_away, run_until_one_fails

BEAT, DEAD = 0.05, 0.4  # s


@asynccontextmanager
async def living(store, *, number: int = 1, leaves: bool = True) -> AsyncIterator[Workers]:
    """A worker that lives in the block. leaves: says so when it goes; else it is killed."""
    workers = Workers(store, number=number, beat_every=BEAT, dead_after=DEAD)
    task = asyncio.create_task(workers.follow(lambda: None))
    try:
        async with asyncio.timeout(5):
            await workers.until(lambda _: True)
        yield workers
    finally:
        await put_away(task)
        if leaves:
            await workers.leave()


async def share_of(workers: Workers, of: int) -> Share:
    async with asyncio.timeout(5):
        return await workers.until(lambda share: share.of == of)


@pytest.mark.parametrize("partitions", [1, 3, 4, 7])
@pytest.mark.parametrize("of", [1, 2, 3, 5])
def test_each_partition_has_one_worker(partitions, of):
    shares = [Share(place, of).partitions(range(partitions)) for place in range(of)]
    assert sorted(p for share in shares for p in share) == list(range(partitions))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [Share(place, of).is_first for place in range(of)] == [True] + [False] * (of - 1)


async def test_who_comes_and_who_goes_is_known_at_once(store):
    async with living(store) as one:
        assert one.share == Share(0, 1)
        async with living(store, number=2) as two:
            assert await share_of(one, 2) == Share(0, 2)
            assert await share_of(two, 2) == Share(1, 2)
            assert (one.service, two.service) == ("processing", "processing 2")
        await share_of(one, 1)


async def test_one_that_died_before_the_stores_clock_was_put_back_is_dead(store):
    async with store.transaction() as transaction:
        await transaction.execute("INSERT INTO workers VALUES (1, 'dead', now() + interval '1 hour')")
    async with living(store, number=2) as two:
        assert await share_of(two, 1) == Share(0, 1)


async def test_one_that_beats_no_more_is_dead_and_its_row_of_services_goes(store):
    async with living(store, number=2) as two:
        async with living(store, leaves=False) as one:
            await share_of(two, 2)
            assert one.is_first
            async with store.transaction() as transaction:
                for name in ("processing", "processing 2", "ingest 1"):
                    await transaction.execute("INSERT INTO services VALUES (%s, '{}', now())", (name,))
        assert await share_of(two, 1) == Share(0, 1)
        assert two.is_first
        async with store.transaction(read_only=True) as transaction:
            assert await transaction.fetch("SELECT name FROM services ORDER BY name") == [
                ("ingest 1",),
                ("processing 2",),
            ]


async def test_a_number_is_its_newest_owners_and_the_other_takes_a_free_one(store):
    """So a worker that was killed goes on at once when it is started again, and two machines need no names."""
    async with living(store) as one, living(store) as other:
        assert (await share_of(other, 2)).is_first
        assert not (await share_of(one, 2)).is_first
        assert (one.service, other.service) == ("processing 2", "processing")


async def test_a_worker_started_again_does_not_wait_for_its_dead_self(store):
    async with living(store, leaves=False):
        pass
    async with living(store) as again:
        assert again.share == Share(0, 1)


async def test_what_one_alone_does_is_done_by_one_whoever_dies(store):
    doing: list[str] = []

    def work(name: str) -> Callable[[], asyncio.Future[None]]:
        async def work() -> None:
            doing.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                doing.remove(name)

        return work

    async def always(workers: Workers, name: str) -> None:
        while True:
            await workers.until(lambda share: share.is_first)
            await workers.while_first(work(name))

    async with living(store, number=2) as two, asyncio.TaskGroup() as tasks:
        second = tasks.create_task(always(two, "two"))
        async with living(store, number=1, leaves=False) as one, asyncio.timeout(5):
            first = tasks.create_task(always(one, "one"))
            while doing != ["one"]:  # noqa: ASYNC110 -- a condition over what they do
                await asyncio.sleep(0.01)
        first.cancel()
        async with asyncio.timeout(5):
            while doing != ["two"]:  # noqa: ASYNC110 -- as above
                await asyncio.sleep(0.01)
        second.cancel()


async def test_an_error_of_what_one_alone_does_comes_through(store):
    async def fails() -> None:
        raise LookupError

    async with living(store) as one:
        with pytest.raises(LookupError):
            await one.while_first(fails)


async def test_what_runs_together_ends_together_with_the_error_of_the_first_that_fails():
    ended = []

    async def stubborn() -> None:
        for _ in range(3):  # swallows what asyncio.wait_for may swallow
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        ended.append("stubborn")
        await asyncio.Event().wait()

    async def fails() -> None:
        raise LookupError

    async with asyncio.timeout(5):
        with pytest.raises(LookupError):
            await run_until_one_fails(stubborn(), fails())
    assert ended == ["stubborn"]


def test_states_of_several_are_told_as_one():
    one = {"stored": 3, "waiting_events": 1, "lag_seconds": 0.5, "problems": {}}
    two = {"stored": 4, "waiting_events": 0, "lag_seconds": 2.5, "problems": {"packs": "away"}}
    assert together({}) == {}
    assert together({"processing": two})["problems"] == {"packs": "away"}
    both = together({processing_name(1): one, processing_name(2): two})
    assert (both["stored"], both["waiting_events"], both["lag_seconds"]) == (7, 1, 2.5)
    assert both["problems"] == {"packs (processing 2)": "away"}
