"""From the driver into the outbox: readings are collected for a moment, packed, and committed with the driver's place."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from citylab.errors import Unavailable
from citylab.model import MINUTE, Micros, Reading
from edge.drivers import Driver
from edge.outbox import Outbox, Pack, Priority
from edge.packing import Form, encode_all, why_not

log = structlog.get_logger(__name__)

COMMITTED_AT_ONCE = 64  # packs; the driver is read on while a commit waits for the disk


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How readings become packs.

    most_records, most_bytes: of a pack; linger: s that a reading waits for others; live_within: µs, readings older than
    that are backlog; priority: of all readings, whatever their age; most_pending: packs in the outbox beyond which the
    driver is not read on, so that a replay goes at the platform's pace. None never stops reading: sensors go on measuring while the platform is away.
    """

    most_records: int = 200
    most_bytes: int = 256 << 10
    linger: float = 1.0
    form: Form = "json"
    live_within: Micros = 15 * MINUTE
    priority: Priority | None = None
    most_pending: int | None = None


class Feed:
    """Reads one driver into one outbox. `offer` is told of packs once they are safe."""

    def __init__(
        self,
        driver: Driver,
        outbox: Outbox,
        offer: Callable[[Sequence[Pack]], None],
        packing: Packing,
        clock: Callable[[], Micros],
    ) -> None:
        self.readings = 0
        self._driver, self._outbox, self._offer = driver, outbox, offer
        self._packing, self._clock = packing, clock
        self._waiting: list[tuple[Sequence[Reading], str | None]] = []
        self._count = 0  # readings waiting
        self._committing = 0  # readings on their way to the disk
        self._ended = False
        self._more, self._full, self._room = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._refused: set[tuple[str, str]] = set()
        self._full_said = False

    async def run(self) -> None:
        """Return when the driver has ended and its readings are safe. What the driver raises passes through."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._commit_all())
            try:
                async for readings, position in self._driver.readings(self._outbox.position):
                    self._collect(readings, position)
                    await self._wait_for_room()
            finally:
                self._ended = True
                self._more.set()
                self._full.set()

    def acknowledged(self) -> None:
        """There may be room in the outbox again."""
        self._room.set()

    def _collect(self, readings: Sequence[Reading], position: str | None) -> None:
        fit = []
        for reading in readings:
            if why := why_not(reading):
                self._refuse(reading, why)
            else:
                fit.append(reading)
        self._waiting.append((fit, position))
        self._count += len(fit)
        self._more.set()
        if self._count >= self._packing.most_records:
            self._full.set()

    def _refuse(self, reading: Reading, why: str) -> None:
        if (reading.name, why) not in self._refused:
            self._refused.add((reading.name, why))
            log.warning(
                "a reading cannot be sent; more like it are left out silently", name=reading.name, why=why
            )

    async def _wait_for_room(self) -> None:
        packing = self._packing
        while True:
            self._room.clear()
            packs = (self._count + self._committing) // packing.most_records
            most = packing.most_pending
            if packs < COMMITTED_AT_ONCE and (most is None or len(self._outbox.pending) + packs < most):
                return
            await self._room.wait()

    async def _commit_all(self) -> None:
        while True:
            await self._more.wait()
            if not self._ended and self._count < self._packing.most_records:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._packing.linger):
                        await self._full.wait()
            waiting, self._waiting, self._count = self._waiting, [], 0
            self._more.clear()
            self._full.clear()
            if waiting:
                await self._commit(list(itertools.chain(*(some for some, _ in waiting))), waiting[-1][1])
            if self._ended and not self._waiting:
                return
            if self._ended:
                self._more.set()

    async def _commit(self, readings: Sequence[Reading], position: str | None) -> None:
        packing, outbox = self._packing, self._outbox
        self._committing = len(readings)
        packs: list[Pack] = []
        moment = self._clock() - packing.live_within
        live = [reading for reading in readings if self._is_live(reading, moment)]
        late = [reading for reading in readings if not self._is_live(reading, moment)]
        for some, priority in ((live, Priority.LIVE), (late, Priority.BACKLOG)):
            payloads = encode_all(
                some, epoch=outbox.epoch, seq=outbox.last + 1 + len(packs), form=packing.form,
                most_records=packing.most_records, most_bytes=packing.most_bytes, refused=self._refuse,
            )  # fmt: skip
            packs += [
                Pack(outbox.last + 1 + len(packs) + n, payload, priority)
                for n, payload in enumerate(payloads)
            ]
        given_up = await self._append(packs, position)
        self.readings += len(readings)
        self._committing = 0
        if given_up and not self._full_said:
            log.warning("the outbox is full: the oldest packs are given up from now on", first=given_up[0][0])
        self._full_said = bool(given_up)
        self._offer(packs)
        self._room.set()

    def _is_live(self, reading: Reading, moment: Micros) -> bool:
        if self._packing.priority is None:
            return reading.time >= moment
        return self._packing.priority is Priority.LIVE

    async def _append(self, packs: Sequence[Pack], position: str | None) -> list[tuple[int, int]]:
        said = False
        while True:
            try:
                given_up = await self._outbox.append(packs, position)
            except Unavailable as error:
                if not said:
                    log.error("readings wait because the outbox cannot be written", why=str(error))
                    said = True
                await asyncio.sleep(error.retry_after)
            else:
                if said:
                    log.info("the outbox can be written again")
                return given_up
