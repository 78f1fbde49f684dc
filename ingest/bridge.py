"""The bridge: MQTT -> event log, and back what the platform publishes. It acknowledges only what the log has."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec
import structlog

from citylab import mqtt_topics
from citylab.errors import Rejected, Unavailable
from citylab.model import GATEWAY_NAME, SECOND, Message, Micros, NewEvent, Reason, Topic
from citylab.mqtt_topics import CREATION_FILTERS, is_announcement
from citylab.ports import BrokerConnection, EventLog
from citylab.senml import identity
from citylab.times import now
from ingest.acknowledgements import Acknowledgements
from ingest.outbound import Outbound
from ingest.quotas import MOST_TOLD, Quota, Quotas

log = structlog.get_logger()

ROOT = "citylab/v1/gateways/"
PLATFORM = "citylab/v1/platform"
# Numbered packs over a clean session: the broker holds nothing for a bridge that died, gateways send them again.
# Descriptors and status over a plain subscription, since shared ones need not deliver what is retained.
NUMBERED_SUBSCRIPTIONS = (
    (f"$share/citylab/{ROOT}+/packs/numbered", 1),
    (f"{ROOT}+/descriptor", 1),
    (f"{ROOT}+/status", 1),
)
# Packs without numbers and SensorThings creates over a persistent session: the broker keeps them while the bridge restarts.
UNNUMBERED_FILTERS = (f"{ROOT}+/packs", *CREATION_FILTERS)
# Results of Tasks too, but by every bridge: one that comes again changes nothing.
RESULTS = f"{ROOT}+/results"


def unnumbered_subscriptions(name: str, *, embedded: bool) -> Sequence[tuple[str, int]]:
    """What a bridge of this name subscribes to in its persistent session. embedded: whether the broker is rumqttd.

    rumqttd 0.20 ends when a persistent session that is alone in a group is cut with messages in flight. So there nothing is
    shared, and one bridge takes all.
    """
    if not embedded:
        return [*((f"$share/citylab-devices/{topics}", 1) for topics in UNNUMBERED_FILTERS), (RESULTS, 1)]
    return [(topics, 1) for topics in (*UNNUMBERED_FILTERS, RESULTS)] if name == "1" else []


TELL_EVERY = 0.05  # s between acknowledgements to a gateway
REPORT_EVERY = 5.0  # s between what the bridge says of itself
LONGEST_NAME = 64  # characters kept of a gateway's name that is none
RETAINED = ("/descriptor", "/status")
_TOPICS = {
    "descriptor": Topic.DESCRIPTORS,
    "status": Topic.STATUS,
    "results": Topic.STATUS,
    "creates": Topic.CREATES,
}


@dataclass(frozen=True)
class Limits:
    """What the bridge refuses. most_bytes: of a pack or a status, and of what is kept of a message that is refused.

    quota: of a gateway's packs.
    """

    most_bytes: int = 256 * 1024
    most_descriptor_bytes: int = 4 << 20
    quota: Quota = field(default_factory=Quota)


class Bridge:
    """Bridges messages into the log until cancelled; what is in hand then is not acknowledged, and comes again."""

    def __init__(
        self,
        numbered: BrokerConnection,
        unnumbered: BrokerConnection,
        event_log: EventLog,
        *,
        name: str = "1",
        limits: Limits | None = None,
        clock: Callable[[], Micros] = now,
    ) -> None:
        self.numbered, self.unnumbered, self.log = numbered, unnumbered, event_log
        self.name, self.limits, self.clock = name, limits or Limits(), clock
        self.acknowledgements = Acknowledgements()
        self.quotas = Quotas(self.limits.quota)
        self.outbound = Outbound(unnumbered, event_log, clock=clock)
        self.packs = self.refused = 0
        self._log_is_away = False
        self._retained: dict[
            str, bytes
        ] = {}  # by topic, the digest of the descriptor or status that the log has

    async def run(self) -> None:
        """Run until cancelled. A broker or a log that goes away is waited for."""
        async with self.numbered, self.unnumbered, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._bridge(self.numbered))
            tasks.create_task(self._bridge(self.unnumbered))
            tasks.create_task(self._tell())
            tasks.create_task(self._greet())
            tasks.create_task(_drain(self.numbered))
            tasks.create_task(self.outbound.run())
            tasks.create_task(self._report())

    async def _bridge(self, connection: BrokerConnection) -> None:
        while True:
            messages = await connection.messages(most=1_000, linger=0.005)
            await self._append(messages)
            for message in messages:
                message.ack()

    async def _append(self, messages: Sequence[Message]) -> None:
        """Return once the log has every message, as a pack, a descriptor, a status or a refusal.

        But for numbered packs beyond their gateway's quota, which come again.
        """
        events: dict[Topic, list[NewEvent]] = {}
        kept: dict[str, bytes] = {}
        for message in messages:
            if message.topic.endswith(RETAINED):
                digest = blake2b(message.payload, digest_size=16).digest()
                known = kept.get(message.topic, self._retained.get(message.topic))
                if not message.payload or known == digest:
                    continue  # deleted from the broker, or delivered again after a reconnect
                kept[message.topic] = digest
            if message.topic.startswith(mqtt_topics.ROOT) and (
                message.retain or is_announcement(message.payload)
            ):
                continue  # what was created before
            if found := self._event(message):
                topic, event = found
                events.setdefault(topic, []).append(event)
        for topic, some in events.items():
            await self._append_patiently(topic, some)
        self._retained |= kept
        self.packs += len(events.get(Topic.PACKS, ()))
        self.refused += len(events.get(Topic.REFUSED, ()))
        for topic in (Topic.PACKS, Topic.REFUSED):
            for event in events.get(topic, ()):
                if "seq" in event.headers:
                    self.acknowledgements.add(event.key, event.headers)

    def _event(self, message: Message) -> tuple[Topic, NewEvent] | None:
        """What the log gets of a message, and into which topic; nothing of one that its gateway is to send again."""
        gateway, _, kind = message.topic.removeprefix(ROOT).partition("/")
        creates = message.topic.startswith(mqtt_topics.ROOT)
        if creates:
            # MQTT does not tell who publishes. No gateway has a name like this one.
            gateway, kind = mqtt_topics.ROOT + message.topic.rpartition("/")[2], "creates"
        payload, headers = message.payload, {"gateway": gateway, "received-at": str(message.received_at)}
        try:
            if not creates:
                _check_name(gateway)
            if kind == "packs/numbered":
                epoch, seq = identity(payload)
                headers |= {"epoch": str(epoch), "seq": str(seq)}
            most = self.limits.most_descriptor_bytes if kind == "descriptor" else self.limits.most_bytes
            if len(payload) > most:
                raise Rejected(
                    Reason.MALFORMED,
                    f"{len(payload)} bytes are more than the {most} that are taken;"
                    f" the first {self.limits.most_bytes} are kept",
                )
            topic = _TOPICS.get(kind, Topic.PACKS)
            if topic == Topic.PACKS:
                until = self.quotas.take(gateway, len(payload), message.received_at)
                if until and "seq" in headers:
                    self.acknowledgements.slow_down(gateway, epoch, until)
                    return None
                if until:
                    raise Rejected(
                        Reason.OVER_QUOTA,
                        f"the gateway sends more than {self.limits.quota.rate:,.0f} bytes a second",
                    )
        except Rejected as error:
            topic = Topic.REFUSED
            # What the log's events and the store's keys cannot take is cut.
            payload = payload[: self.limits.most_bytes]
            gateway = "".join(c if c.isprintable() else "?" for c in gateway[:LONGEST_NAME])
            headers |= {"gateway": gateway, "reason": error.reason, "detail": error.detail}
        if topic == Topic.PACKS:
            headers["content-type"] = (
                "application/senml+cbor" if payload >= b"\x80" else "application/senml+json"
            )
        else:
            headers["topic"] = message.topic
        return topic, NewEvent(gateway, payload, headers, message.received_at)

    async def _append_patiently(self, topic: Topic, events: Sequence[NewEvent]) -> None:
        delay = 0.1
        while True:
            try:
                await self.log.append(topic, events)
            except Unavailable as error:
                if not self._log_is_away:  # one of several tasks that append says it for all
                    log.warning("packs wait at the gateways until the event log is back", why=str(error))
                self._log_is_away = True
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)
            else:
                if self._log_is_away:
                    log.info("the event log is back")
                self._log_is_away = False
                return

    async def _tell(self) -> None:
        """Acknowledge to the gateways. What gets lost here is sent again by the gateway, and acknowledged again."""
        while True:
            await asyncio.sleep(TELL_EVERY)
            for gateway, payload in self.acknowledgements.take():
                self.numbered.publish(f"{ROOT}{gateway}/acks", payload)

    async def _greet(self) -> None:
        """Tell gateways that a bridge is back, whenever it connects."""
        while True:
            await self.numbered.wait_connected()
            since = {"since": self.clock() / SECOND}
            self.numbered.publish(PLATFORM, msgspec.json.encode(since), retain=True)
            await self.numbered.wait_disconnected()

    async def _report(self) -> None:
        """Say through the log how the bridge is, at once when it is connected or no longer; processing keeps it."""
        topic, loop = f"{PLATFORM}/bridges/{self.name}", asyncio.get_running_loop()
        before, since = 0, loop.time() - REPORT_EVERY
        while True:
            began, connected = loop.time(), self._connected
            state: dict[str, object] = {
                "packs": self.packs,
                "packs_per_second": round((self.packs - before) / (began - since), 1),
                "refused": self.refused,
                "published": self.outbound.published,
                "lost": self.outbound.lost,
                "connected": connected,
            }
            if self.quotas.over:
                state["over_quota"] = self.quotas.over.total()
                state["over_quota_by_gateway"] = dict(self.quotas.over.most_common(MOST_TOLD))
            before, since = self.packs, began
            moment = self.clock()
            self.quotas.forget(moment)
            event = NewEvent(
                topic, msgspec.json.encode(state), {"topic": topic, "received-at": str(moment)}, moment
            )
            await self._append_patiently(Topic.STATUS, [event])
            while loop.time() < began + REPORT_EVERY and self._connected is connected:  # noqa: ASYNC110 -- of two, either
                await asyncio.sleep(0.1)

    @property
    def _connected(self) -> bool:
        return self.numbered.connected and self.unnumbered.connected


def _check_name(gateway: str) -> None:
    if not GATEWAY_NAME.fullmatch(gateway):
        raise Rejected(
            Reason.MALFORMED,
            f"a gateway's name has 1 to 64 ASCII letters, digits and -_.: , which {gateway[:80]!r} has not",
        )


async def _drain(connection: BrokerConnection) -> None:
    """Take PUBACKs of our own messages; none is waited for."""
    while True:
        if not await connection.pubacks():
            await connection.wait_connected()
