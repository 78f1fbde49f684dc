"""The edge agent: one gateway's driver, outbox and connection to the broker (the contracts, The agent's side)."""

import asyncio
import contextlib
import importlib.metadata
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import structlog

from citylab.errors import ConfigurationError, Unavailable
from citylab.model import GATEWAY_NAME, SECOND, Micros, Will
from citylab.ports import BrokerConnection, BrokerConnector
from citylab.times import format_instant, now
from edge.commands import Commands
from edge.drivers import Driver
from edge.feed import Feed, Packing
from edge.messages import PLATFORM, Acks, OutboxState, Platform, Resend, Status, Topics
from edge.outbox import Outbox, Pack, Priority
from edge.ranges import Ranges
from edge.window import Window

log = structlog.get_logger(__name__)

LARGEST_DESCRIPTOR = (
    512 << 10
)  # bytes that the embedded broker takes; a larger message would end the connection
KEPT_IN_MEMORY, KEPT_BYTES = (
    1_000,
    16 << 10,
)  # fresh packs up to this size need not be read from the disk to be sent
LONGEST_SLOW_DOWN = 300.0  # s, whatever the platform's clock says
RANGES_TOLD = 1_000  # in a status, so that it stays small
LIVE_FOR = 60.0  # s that a live pack may wait before it counts as backlog
RESERVED_FOR = 10.0  # s after the last live pack for which the window keeps a half for the next


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """What can be set of an agent; the defaults are the contracts'. Times in seconds.

    window: packs on the way unacknowledged, at most; status_every: between two statuses; flush_every: acknowledgements
    lost in a crash; their packs come again.
    """

    packing: Packing = field(default_factory=Packing)
    window: int = 256
    ack_timeout: float = 5.0
    longest_ack_timeout: float = 300.0
    puback_within: float = 30.0
    keep_alive: int = 30
    status_every: float = 60.0
    flush_every: float = 2.0


class Agent:
    """One gateway. `gateway` is also the MQTT client id; `connect` makes connections to the broker.

    The outbox is opened and closed by `run`. Raises ConfigurationError for a name or a descriptor that cannot be sent.
    """

    def __init__(
        self,
        gateway: str,
        driver: Driver,
        outbox: Outbox,
        connect: BrokerConnector,
        *,
        settings: AgentSettings | None = None,
        clock: Callable[[], Micros] = now,
        draw: Callable[[], float] = random.random,
    ) -> None:
        if not GATEWAY_NAME.fullmatch(gateway):
            raise ConfigurationError(
                f"{gateway!r} is no gateway's name: 1 to 64 ASCII letters, digits and - _ . :"
            )
        self.gateway, self.driver, self.outbox = gateway, driver, outbox
        self.settings = settings or AgentSettings()
        self.throttled = 0.0  # s for which the platform has had us send nothing
        self._clock, self._draw = clock, draw
        self._topics = Topics(gateway)
        self._version = importlib.metadata.version("citylab")
        self._since = clock()
        self._descriptor = self._encode_descriptor()
        self._feed = Feed(driver, outbox, self._offer, self.settings.packing, clock)
        self._wake, self._idle = asyncio.Event(), asyncio.Event()
        self._commands = Commands(
            driver,
            outbox,
            lambda result: self._connection.publish(self._topics.results, result),
            self._idle.set,
            clock,
        )
        self._window = Window(
            most=self.settings.window,
            timeout=self.settings.ack_timeout,
            longest_timeout=self.settings.longest_ack_timeout,
            puback_within=self.settings.puback_within,
            draw=draw,
        )
        self._live: deque[tuple[int, float]] = deque()  # and since when it waits
        self._backlog = Ranges()
        self._fresh: dict[int, bytes] = {}
        self._live_at = -1e9  # when there was live data last
        self._slow_until = 0.0  # of the event loop's clock
        self._platform_since: float | None = None
        self._refusals: set[str] = set()
        will = Will(self._topics.status, msgspec.json.encode(Status("offline", self._version)))
        self._connection: BrokerConnection = connect(
            client_id=gateway,
            keep_alive=self.settings.keep_alive,
            subscriptions=[
                (topic, 1)
                for topic in (self._topics.acks, self._topics.resend, self._topics.commands, PLATFORM)
            ],
            will=will,
        )

    async def run(self) -> None:
        """Run until the driver has ended and everything is acknowledged, or until cancelled."""
        async with self.outbox:
            for first, last in self.outbox.pending.pairs():
                self._backlog.add(first, last)
            async with self._connection:
                try:
                    async with asyncio.TaskGroup() as tasks:
                        work = (self._converse, self._confirm, self._receive, self._flush, self._tell)
                        others = [tasks.create_task(each()) for each in (*work, self._commands.run)]
                        await self._feed.run()
                        await self._everything_acknowledged()
                        for task in others:
                            task.cancel()
                finally:
                    self._leave()

    async def _everything_acknowledged(self) -> None:
        while self.outbox.pending or self._commands.busy:
            self._idle.clear()
            await self._idle.wait()

    # -- sending ------------------------------------------------------------------------------------------------------

    def _offer(self, packs: Sequence[Pack]) -> None:
        """Packs that are safe may be sent."""
        moment = asyncio.get_running_loop().time()
        for pack in packs:
            if pack.priority is Priority.LIVE:
                self._live.append((pack.seq, moment))
                self._live_at = moment
            else:
                self._backlog.add(pack.seq)
            if len(self._fresh) < KEPT_IN_MEMORY and len(pack.payload) <= KEPT_BYTES:
                self._fresh[pack.seq] = pack.payload
        self._age(moment)
        self._wake.set()

    def _age(self, moment: float) -> None:
        """What has waited through an outage is backlog: the live packs behind it go first."""
        while self._live and moment - self._live[0][1] > LIVE_FOR:
            self._backlog.add(self._live.popleft()[0])

    async def _converse(self) -> None:
        """Per connection: say who we are, then send until it is lost."""
        loop = asyncio.get_running_loop()
        while True:
            number = await self._connection.wait_connected()
            for sent in self._window.restart():
                self._backlog.add(sent.seq)
            self._since = self._clock()
            self._publish(self._topics.descriptor, self._descriptor)
            self._publish_status("online")
            await self._commands.connected()
            while await self._is_current(number):
                self._wake.clear()
                moment = loop.time()
                if self._window.stuck_at() <= moment:
                    self._connection.reconnect(f"no PUBACK within {self.settings.puback_within:g} s")
                    break
                if moment >= self._slow_until:
                    for sent in self._window.expire(moment):
                        self._backlog.add(sent.seq)
                    await self._send_some(number)
                await self._rest(moment)

    async def _is_current(self, number: int) -> bool:
        # A connection that was lost and is back again is another one.
        return self._connection.connected and await self._connection.wait_connected() == number

    async def _rest(self, moment: float) -> None:
        resume = self._slow_until if moment < self._slow_until else self._window.next_due()
        until = min(resume, self._window.stuck_at())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until if math.isfinite(until) else None):
                await self._wake.wait()

    async def _send_some(self, number: int) -> None:
        chosen = self._choose()
        missing = [seq for seq, _ in chosen if seq not in self._fresh]
        stored = await self._load(missing) if missing else {}
        moment = asyncio.get_running_loop().time()
        current = await self._is_current(number)
        for seq, live in chosen:
            payload = self._fresh.get(seq) or stored.get(seq)
            if seq not in self.outbox.pending:
                continue
            packet = self._connection.publish(self._topics.packs, payload) if current and payload else None
            if packet is None:
                self._backlog.add(seq)
            else:
                self._window.sent(seq, packet, moment, live=live)

    def _choose(self) -> list[tuple[int, bool]]:
        """The packs to send now, and whether they are live."""
        chosen: list[tuple[int, bool]] = []
        room = self._window.room()
        moment = asyncio.get_running_loop().time()
        self._age(moment)
        while self._live and len(chosen) < room:
            seq, _ = self._live.popleft()
            if seq in self.outbox.pending:
                chosen.append((seq, True))
        reserve = moment - self._live_at < RESERVED_FOR
        backlog = min(room - len(chosen), self._window.backlog_room(reserve=reserve))
        while self._backlog and backlog > 0:
            seq = self._backlog.pop()
            if seq in self.outbox.pending:
                chosen.append((seq, False))
                backlog -= 1
        return chosen

    async def _load(self, numbers: Sequence[int]) -> dict[int, bytes]:
        try:
            return await self.outbox.load(numbers)
        except Unavailable as error:
            log.error("packs wait because the outbox cannot be read", why=str(error))
            await asyncio.sleep(error.retry_after)
            return {}

    def _publish(self, topic: str, payload: bytes) -> None:
        packet = self._connection.publish(topic, payload, retain=True)
        if packet is not None:
            self._window.sent(0, packet, asyncio.get_running_loop().time())

    # -- listening ----------------------------------------------------------------------------------------------------

    async def _confirm(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            packets = await self._connection.pubacks()
            self._window.pubacks(packets, loop.time())
            await self._commands.pubacks(packets)
            self._wake.set()  # also after a disconnect

    async def _receive(self) -> None:
        while True:
            for message in await self._connection.messages():
                try:
                    if message.topic == PLATFORM:
                        self._greeted(msgspec.json.decode(message.payload, type=Platform))
                    elif message.topic == self._topics.commands:
                        await self._commands.receive(message.payload)
                    elif message.topic == self._topics.resend:
                        await self._send_again(msgspec.json.decode(message.payload, type=Resend))
                    else:
                        self._answered(msgspec.json.decode(message.payload, type=Acks))
                except msgspec.DecodeError as error:
                    log.warning("a message that we do not understand", topic=message.topic, why=str(error))
                message.ack()

    def _greeted(self, platform: Platform) -> None:
        if platform.since != self._platform_since:
            self._platform_since = platform.since
            self._window.hurry(asyncio.get_running_loop().time())
            self._wake.set()

    def _answered(self, acks: Acks) -> None:
        if acks.slow_down_until is not None:
            self._slow_down(acks.slow_down_until)
        if acks.epoch == self.outbox.epoch:
            for first, last in acks.appended:
                self._done(first, last)
            for seq, reason in acks.refused.items():
                self._done(seq, seq)
                if reason not in self._refusals:
                    self._refusals.add(reason)
                    log.warning(
                        "the platform refused a pack; it is in its rejections", seq=seq, reason=reason
                    )
        self._feed.acknowledged()
        self._idle.set()
        self._wake.set()

    async def _send_again(self, resend: Resend) -> None:
        """Send what is still kept, behind what is live, and say at once what is not."""
        if resend.epoch != self.outbox.epoch:
            return
        try:
            for first, last in resend.ranges:
                await self.outbox.reclaim(max(first, 1), last)
        except Unavailable as error:
            log.error("packs that the platform misses wait until it asks again", why=str(error))
        waiting = {seq for seq, _ in self._live} | self._window.in_flight.keys()
        for first, last in resend.ranges:
            for seq in self.outbox.pending.within(max(first, 1), min(last, self.outbox.last)):
                if seq not in waiting:
                    self._backlog.add(seq)
        log.info("the platform misses packs", ranges=len(resend.ranges), gone=len(self.outbox.gone))
        self._publish_status("online")
        self._wake.set()

    def _done(self, first: int, last: int) -> None:
        last = min(last, self.outbox.last)
        if first > last:
            return
        self.outbox.acknowledge(first, last)
        self._window.acknowledged(first, last)
        if last - first < len(self._fresh):
            for seq in range(first, last + 1):
                self._fresh.pop(seq, None)
        else:
            self._fresh = {seq: payload for seq, payload in self._fresh.items() if not first <= seq <= last}

    def _slow_down(self, until: float) -> None:
        moment = asyncio.get_running_loop().time()
        pause = min(until - self._clock() / SECOND, LONGEST_SLOW_DOWN)
        if moment + pause > self._slow_until:
            self.throttled += moment + pause - max(moment, self._slow_until)
            self._slow_until = moment + pause

    # -- what we say of ourselves -------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(self.settings.flush_every)
            with contextlib.suppress(
                Unavailable
            ):  # said where readings wait for it; until then they come again
                await self.outbox.flush()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(self.settings.status_every)
            self._publish_status("online")
            if (descriptor := self._encode_descriptor()) != self._descriptor:
                self._descriptor = descriptor
                self._publish(self._topics.descriptor, descriptor)

    def _encode_descriptor(self) -> bytes:
        descriptor = msgspec.json.encode(list(self.driver.things))
        if len(descriptor) > LARGEST_DESCRIPTOR:
            raise ConfigurationError(
                f"the descriptor of {self.gateway} has {len(descriptor):,} bytes, and brokers take {LARGEST_DESCRIPTOR:,}:"
                " let several gateways share its Things"
            )
        return descriptor

    def _publish_status(self, state: Literal["online", "offline"]) -> None:
        outbox = self.outbox
        about = OutboxState(
            epoch=outbox.epoch,
            born=format_instant(outbox.born),
            first_unacked=outbox.pending.first,
            last=outbox.last,
            pending=_told(outbox.pending),
            gone=_told(outbox.gone),
            bytes=outbox.stored,
        )
        status = Status(
            state=state,
            agent=self._version,
            since=format_instant(self._since),
            outbox=about,
            unclean_stops=outbox.unclean_stops,
            throttled_ms=round(self.throttled * 1_000),
        )
        self._publish(self._topics.status, msgspec.json.encode(status))

    def _leave(self) -> None:
        """Say that we go; the connection sends it before it closes in good order, so that no will is published."""
        self._since = self._clock()
        self._publish_status("offline")


def _told(numbers: Ranges) -> list[tuple[int, int]]:
    """Ranges for a status: where there are too many, better too much than a number that looks lost."""
    pairs = numbers.pairs()
    if len(pairs) > RANGES_TOLD:
        pairs[RANGES_TOLD - 1 :] = [(pairs[RANGES_TOLD - 1][0], pairs[-1][1])]
    return pairs
