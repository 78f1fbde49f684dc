"""Which of the processing services does what: by heartbeats in the store, without anyone in charge.

The fence (`positions`) keeps those who disagree for a moment from storing twice; the shares only spare the work.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from citylab.errors import Unavailable
from citylab.ports import Store, Transaction
from citylab.services import PROCESSING_SILENT, processing_name

BEAT_EVERY = 1.0  # s
LEAVE_WITHIN = 1.0  # s, else the others notice by themselves
_JOINING = 7102008  # an advisory lock


async def put_away(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks, and return once they have ended.

    Again and again, because `asyncio.wait_for` of Python 3.11, on which psycopg waits, swallows a cancellation that
    comes together with what it waits for.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)  # what they raised has been seen


async def run_until_one_fails(*work: Coroutine[Any, Any, None]) -> None:
    """Run until one raises, and raise that once all have ended; a task group would cancel each only once."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        await put_away(*tasks)


class Share(NamedTuple):
    """A worker's part of the work: its place among `of` live ones, from 0."""

    place: int
    of: int

    @property
    def is_first(self) -> bool:
        """Whether it does what one alone does."""
        return self.place == 0

    def partitions(self, partitions: Iterable[int]) -> list[int]:
        """Which of a topic's partitions are its own."""
        return [p for place, p in enumerate(sorted(partitions)) if place % self.of == self.place]


ALL = Share(0, 1)


class Workers:
    """The processing services that live, one of which we are.

    number: which of them we would be, and name ourselves by. Whoever has it (a run of ours that was killed, most likely)
    loses it, and takes a free one if it lives. dead_after: s without a heartbeat.
    """

    def __init__(
        self,
        store: Store,
        *,
        number: int = 1,
        beat_every: float = BEAT_EVERY,
        dead_after: float = PROCESSING_SILENT,
    ) -> None:
        self.store, self.number = store, number
        self.beat_every, self.dead_after = beat_every, dead_after
        self.share: Share | None = None
        self._run = secrets.token_hex(8)
        self._joined = False
        self._live: list[int] = []
        self._changed = asyncio.Event()

    @property
    def service(self) -> str:
        """What we are called in the table `services`."""
        return processing_name(self.number)

    @property
    def is_first(self) -> bool:
        """Whether we do what one alone does."""
        return self.share is not None and self.share.is_first

    async def follow(self, well: Callable[[], None]) -> None:
        """Beat, and keep `share` up to date, until cancelled. well: is told when the store answers. Raises `Unavailable`."""
        async for _ in self.store.notifications("citylab_workers", poll=self.beat_every):
            await self._beat()
            well()

    async def leave(self) -> None:
        """Give our part to the others at once."""
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(LEAVE_WITHIN), self.store.transaction() as transaction:
                await transaction.execute("DELETE FROM workers WHERE run = %s", (self._run,))
                await transaction.execute("NOTIFY citylab_workers")

    async def until(self, fits: Callable[[Share], bool]) -> Share:
        """Return our share once it is like that."""
        while self.share is None or not fits(self.share):
            await self._changed.wait()
        return self.share

    async def while_first(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Work until we are no longer the first, or the work ends."""
        doing = asyncio.ensure_future(work())
        other = asyncio.ensure_future(self.until(lambda share: not share.is_first))
        try:
            await asyncio.wait({doing, other}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                await doing
        finally:
            await put_away(doing, other)

    async def _beat(self) -> None:
        async with self.store.transaction() as transaction:
            beaten = await transaction.execute(
                "UPDATE workers SET seen_at = clock_timestamp() WHERE run = %s", (self._run,)
            )
            if not beaten:
                await self._join(transaction)
            rows = await transaction.fetch(
                # What was seen later than now died before the store's clock was put back.
                "SELECT number FROM workers WHERE run = %s OR abs(extract(epoch FROM clock_timestamp() - seen_at)) < %s"
                " ORDER BY number",
                (self._run, self.dead_after),
            )
            live = [number for (number,) in rows]
            if live != self._live:
                await transaction.execute("DELETE FROM workers WHERE number <> ALL(%s)", (live,))
                await transaction.execute(
                    "DELETE FROM services WHERE starts_with(name, 'processing') AND name <> ALL(%s)",
                    ([processing_name(number) for number in live],),
                )
        self._live = live
        share = Share(live.index(self.number), len(live))
        if share != self.share:
            self.share = share
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def _join(self, transaction: Transaction) -> None:
        await transaction.execute("SELECT pg_advisory_xact_lock(%s)", (_JOINING,))
        if self._joined:
            ((self.number,),) = await transaction.fetch(
                "SELECT min(n)::int FROM generate_series(1, (SELECT count(*) + 1 FROM workers)) n"
                " WHERE NOT EXISTS (SELECT FROM workers w WHERE w.number = n)"
            )
        await transaction.execute(
            "INSERT INTO workers VALUES (%s, %s, clock_timestamp())"
            " ON CONFLICT (number) DO UPDATE SET run = excluded.run, seen_at = excluded.seen_at",
            (self.number, self._run),
        )
        await transaction.execute("NOTIFY citylab_workers")
        self._joined = True
