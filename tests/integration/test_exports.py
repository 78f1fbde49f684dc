"""CSV and GeoJSON of many rows: constant memory, however slow the client, and an end when it is gone."""

import asyncio
import tracemalloc
from itertools import pairwise

import pytest

from api.sensorthings.service import SensorThings
from citylab.adapters import entity_writes

ROWS = 200_000


@pytest.fixture
async def service(store) -> SensorThings:
    """A service over a store of many Observations."""
    async with store.transaction() as transaction:
        await transaction.execute(
            "INSERT INTO observations (id, datastream_id, phenomenon_time, result_number)"
            " SELECT i, 1 + i %% 10, timestamptz '2024-01-01' + i * interval '1 second', i FROM generate_series(1, %s) i",
            (ROWS,),
        )
    return SensorThings(store, entity_writes)


def scope(query: str) -> dict:
    return {
        "type": "http", "method": "GET", "path": "/v1.1/Observations", "raw_path": b"/v1.1/Observations",
        "query_string": query.encode(), "headers": [(b"host", b"city")], "scheme": "http", "server": ("city", 80),
    }  # fmt: skip


class Client:
    """The other end of a connection. leaves_after: how many pieces it reads before it goes away."""

    def __init__(self, leaves_after: int = 1 << 60, on_piece=None) -> None:
        self.pieces: list[int] = []
        self.last = b""
        self.ended = False
        self._gone = asyncio.Event()
        self._leaves_after = leaves_after
        self._on_piece = on_piece
        self._asked = False

    async def receive(self) -> dict:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        if message["type"] != "http.response.body":
            assert message["status"] == 200
            return
        self.pieces.append(len(message["body"]))
        self.last = message["body"] or self.last
        self.ended = not message.get("more_body", False)
        if self._on_piece:
            self._on_piece()
        if len(self.pieces) >= self._leaves_after:
            self._gone.set()
        await asyncio.sleep(0)  # where a server waits for its socket


async def at_work(store) -> int:
    async with store.transaction(read_only=True) as transaction:
        ((count,),) = await transaction.fetch(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
        )
    return count


@pytest.mark.parametrize("form", ["CSV", "GeoJSON"])
async def test_memory_does_not_grow_with_the_rows(service, form):
    async def export(rows: int) -> tuple[int, int]:
        client = Client()
        tracemalloc.start()
        await service(scope(f"$resultFormat={form}&$top={rows}"), client.receive, client.send)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert client.ended
        return peak, sum(client.pieces)

    await export(1_000)
    few, less = await export(10_000)
    many, more = await export(ROWS)
    assert more > 15 * less
    assert many < 2 * few
    assert many < 8 << 20


async def test_nothing_is_fetched_ahead_of_a_slow_client(service):
    held: list[int] = []
    client = Client(on_piece=lambda: held.append(len(asyncio.all_tasks())))
    await service(scope("$resultFormat=CSV&$top=20000"), client.receive, client.send)
    assert max(client.pieces) < 1 << 20
    assert len(client.pieces) > 20
    assert max(held) - min(held) <= 1
    assert all(abs(a - b) < 1 << 18 for a, b in pairwise(client.pieces[1:20]))


async def test_an_export_ends_when_its_client_is_gone(service, store):
    client = Client(leaves_after=3)
    await service(scope("$resultFormat=CSV"), client.receive, client.send)
    assert len(client.pieces) < 6
    assert not client.ended
    assert await at_work(store) == 0
    whole = Client()
    await service(scope("$resultFormat=CSV"), whole.receive, whole.send)
    assert whole.ended
    assert whole.last.endswith(b"\r\n")


async def test_an_export_that_is_cancelled_leaves_nothing_open(service, store):
    started = asyncio.Event()
    client = Client(on_piece=started.set)
    running = asyncio.create_task(service(scope("$resultFormat=CSV"), client.receive, client.send))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await at_work(store) == 0


async def test_exports_leave_connections_for_everybody_else(service, store):
    """So many at once, and no more: each holds a connection for as long as its client reads."""
    entered = asyncio.Event()
    resume = asyncio.Event()
    reached: list[int] = []

    class Slow(Client):
        async def send(self, message: dict) -> None:
            reached.append(len(message))
            if len(reached) == 4:
                entered.set()
            await resume.wait()

    slow = [Slow() for _ in range(4)]
    running = [asyncio.create_task(service(scope("$resultFormat=CSV"), c.receive, c.send)) for c in slow]
    await asyncio.wait_for(entered.wait(), 30)
    answers: list[int] = []

    async def send(message: dict) -> None:
        answers.append(message.get("status", 0))

    await service(scope("$resultFormat=CSV"), Client().receive, send)
    assert answers[0] == 503
    answers.clear()
    await service(scope("$top=1"), Client().receive, send)
    assert answers[0] == 200
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert await at_work(store) == 0
