"""MQTT 3.1.1 through paho-mqtt: one network thread a connection, which never waits for the event loop.

paho is driven through its interface for foreign event loops (`loop_read`, `loop_write`, `loop_misc`), because its own
loop asks the system for one to four bytes at a time, and each such call hands the interpreter to another thread.
"""

import asyncio
import contextlib
import random
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, cast
from urllib.parse import parse_qs, unquote, urlsplit

import structlog
from paho.mqtt.client import Client, MQTTMessage, error_string
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from citylab.adapters.mqtt_socket import BufferedSocket
from citylab.errors import ConfigurationError
from citylab.model import Message, Micros, Will
from citylab.times import now

OK = MQTTErrorCode.MQTT_ERR_SUCCESS
log = structlog.get_logger(__name__)

MOST_UNACKNOWLEDGED = 64 << 20  # bytes
FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # s between two tries, before the jitter
ANSWER_WITHIN = 10.0  # s until CONNACK and every SUBACK
HELD_BACK = 5.0  # s for which we do not read; longer, and a broker would think us dead
CLOSE_WITHIN = 2.0  # s for what is still to be sent when we close


class Address(NamedTuple):
    """Where a broker is: mqtt://[user:password@]host[:port], mqtts:// with `?ca=FILE` for an authority of one's own."""

    host: str
    port: int
    username: str | None
    password: str | None
    tls: ssl.SSLContext | None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL. Raises ConfigurationError, without showing the password."""
        wrong = (
            "CITYLAB_BROKER_URL must look like mqtt://[user:password@]host[:port] or mqtts://...[?ca=FILE]"
        )
        try:
            parts = urlsplit(url)
            options = parse_qs(parts.query, strict_parsing=bool(parts.query))
            tls = parts.scheme == "mqtts"
            port = parts.port or (8883 if tls else 1883)
        except ValueError as error:
            raise ConfigurationError(f"{wrong}: {error}") from None
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or parts.path not in {"", "/"}:
            raise ConfigurationError(wrong)
        if set(options) - ({"ca"} if tls else set()):
            raise ConfigurationError(f"{wrong}; it has {', '.join(options)}")
        authority = options["ca"][0] if options else None
        try:
            context = ssl.create_default_context(cafile=authority) if tls else None
        except OSError as error:
            file = Path(authority or "")
            raise ConfigurationError(f"the certificate authority {file} cannot be read: {error}") from None
        user, password = (
            unquote(part) if part is not None else None for part in (parts.username, parts.password)
        )
        return cls(parts.hostname, port, user, password, context)

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"

    def __repr__(self) -> str:
        return str(self)  # a password never prints


class MqttConnection:
    """`citylab.ports.BrokerConnection` by paho-mqtt. Use it from one event loop; `ack()` too.

    client_id: the broker disconnects an older client of the same name. subscriptions: (topic filter, QoS 0 or 1), made
    anew with each connection before `connected` is true. keep_alive: s. most_unacknowledged_bytes: payloads received
    and not acknowledged; beyond it nothing more is read, and when that does not help within half the keep-alive (5 s at
    most) the connection is dropped, with what nobody has asked for yet, and opened again.
    """

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        clean_session: bool = True,
        keep_alive: int = 30,
        subscriptions: Sequence[tuple[str, int]] = (),
        will: Will | None = None,
        most_unacknowledged_bytes: int = MOST_UNACKNOWLEDGED,
        clock: Callable[[], Micros] = now,
        draw: Callable[[], float] = random.random,
    ) -> None:
        if any(qos not in {0, 1} for _, qos in subscriptions):
            raise ValueError("subscriptions are made at QoS 0 or 1")
        self.address = Address.parse(url)
        self.client_id = client_id
        self.clean_session = clean_session
        self.keep_alive = keep_alive
        self.subscriptions = list(subscriptions)
        self.will = will
        self.most_unacknowledged_bytes = most_unacknowledged_bytes
        self.clock = clock
        self._draw = draw
        # Written by the network thread, read by the event loop.
        self.incoming: deque[tuple[Message, Receipt | None]] = deque()
        self.acknowledged: deque[int] = deque()
        self._waking = False
        # The event loop's.
        self._session: Session | None = None
        self._why = "not connected yet"
        self._said_lost = False
        self._lost_unseen = False
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._something, self._pubacks = asyncio.Event(), asyncio.Event()
        self._finished = asyncio.Event()
        self._down.set()
        self._current = Session(self, 1, 0)
        # Both's.
        self._stop = threading.Event()
        self._settled = threading.Event()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"mqtt {self.client_id}", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stop.set()
        self._settled.set()
        self._current.end("closed", politely=True)
        await self._finished.wait()
        self._thread.join()
        self._current.close()

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and the subscriptions."""
        return self._session is not None

    async def wait_connected(self) -> int:
        """Return the number of this connection (1, 2, ...) once connected, at once if it is."""
        while self._session is None:
            await self._up.wait()
        return self._session.number

    async def wait_disconnected(self) -> str:
        """Return why, once the connection is gone, at once if it is."""
        await self._down.wait()
        return self._why

    def reconnect(self, why: str) -> None:
        """Drop the connection and open it anew."""
        if session := self._session:
            self._lose(why)
            session.end(why)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int | None:
        """Hand a message to the connection; return its packet number, or None when it cannot take it."""
        session = self._session
        return session.publish(topic, payload, qos, retain) if session else None

    async def pubacks(self) -> list[int]:
        """Wait for PUBACKs; return the packet numbers acknowledged since the last call. [] after a disconnect."""
        while not self.acknowledged:
            if self._lost_unseen:
                self._lost_unseen = False
                return []
            self._pubacks.clear()
            await self._pubacks.wait()
        return [self.acknowledged.popleft() for _ in range(len(self.acknowledged))]

    async def messages(self, *, most: int = 1_000, linger: float = 0.0) -> list[Message]:
        """Wait for messages; return up to `most` in order of receipt, after at most `linger` seconds more."""
        while not self.incoming:
            self._something.clear()
            await self._something.wait()
        if linger > 0 and len(self.incoming) < most:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(linger):
                    while len(self.incoming) < most:
                        self._something.clear()
                        await self._something.wait()
        taken, session, free = [], self._current, 0
        for _ in range(min(most, len(self.incoming))):
            message, receipt = self.incoming.popleft()
            taken.append(message)
            if receipt is None or receipt.session is not session:
                free += len(message.payload)  # no PUBACK will do it
        if free:
            session.released += free
            session.wake()
        return taken

    # -- from here on the network thread, but for the callbacks that it hands to the event loop -----------------------

    def _run(self) -> None:
        failures = 0
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                self._tell(self._ended, self._current.run())
                # A connection that ends again and again is opened ever less often.
                failures = 1 if time.monotonic() - began > LONGEST_DELAY else failures + 1
                delay = min(FIRST_DELAY * 2 ** min(failures - 1, 10), LONGEST_DELAY)
                self._stop.wait(delay * (0.5 + self._draw() / 2))
                self._settled.wait()  # until the event loop has made the next session
                self._settled.clear()
        finally:
            self._tell(self._finished.set)

    def _tell(self, callback: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is gone, and nobody is left to be told
            self._loop.call_soon_threadsafe(callback, *arguments)

    def wake(self) -> None:
        """Tell the event loop once that something came, however much it is."""
        if not self._waking:
            self._waking = True
            self._tell(self._woken)

    def _woken(self) -> None:
        self._waking = False  # before looking: what comes from now on wakes again
        if self.incoming:
            self._something.set()
        if self.acknowledged:
            self._pubacks.set()

    def opened(self, session: "Session") -> None:
        """Tell the event loop that broker and subscriptions are there."""
        self._tell(self._opened, session)

    def _opened(self, session: "Session") -> None:
        if session.why:
            return
        self._session = session
        self._down.clear()
        self._up.set()
        if self._said_lost:
            self._said_lost = False
            log.info("connected to the MQTT broker", broker=str(self.address), client=self.client_id)

    def _lose(self, why: str) -> None:
        if self._session:
            self._session = None
            self._lost_unseen = True
        self._why = why
        self._up.clear()
        self._down.set()
        self._pubacks.set()

    def _ended(self, why: str) -> None:
        self._lose(why)
        session, dropped = self._current, 0
        session.forget()
        if session.too_much:
            dropped = len(self.incoming)
            self.incoming.clear()
        if self._stop.is_set():
            return
        held = sum(len(message.payload) for message, _ in self.incoming)
        self._current = Session(self, session.number + 1, held)
        self._settled.set()
        if not self._said_lost:
            self._said_lost = True
            log.warning(
                "no connection to the MQTT broker; trying again until there is one",
                broker=str(self.address), client=self.client_id, why=why, messages_dropped=dropped,
            )  # fmt: skip


def nothing() -> None:
    """Acknowledge a message of QoS 0."""


class Receipt:
    """A message whose PUBACK has not been sent."""

    __slots__ = ("acknowledged", "mid", "session", "size")

    def __init__(self, session: "Session", mid: int, size: int) -> None:
        self.session = session
        self.mid = mid
        self.size = size
        self.acknowledged = False

    def ack(self) -> None:
        """Send the PUBACK once every earlier message of the connection has been acknowledged."""
        self.acknowledged = True
        self.session.send_pubacks()


class Session:
    """One network connection, from CONNECT to its end. A new one starts without memory of the old."""

    def __init__(self, connection: MqttConnection, number: int, held: int) -> None:
        """number: 1, 2, ...; held: bytes of earlier messages that nobody has asked for yet."""
        self.number = number
        self.why = ""
        self.too_much = False
        self.received = held  # bytes, written by the network thread
        self.released = 0  # bytes, written by the event loop
        self._connection = connection
        self._politely = False
        self._accepted = False
        self._full_since = 0.0
        self._unacknowledged: deque[Receipt] = deque()
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        self._socket: BufferedSocket | None = None
        self._client = self._make_client()

    def _make_client(self) -> Client:
        connection = self._connection
        client = Client(
            CallbackAPIVersion.VERSION2,
            connection.client_id,
            clean_session=connection.clean_session,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,  # also forbids a silent downgrade to MQTT 3.1
            manual_ack=True,
        )
        client.max_inflight_messages_set(0)  # no limit of paho's own: the callers' windows are the limit
        client.username_pw_set(connection.address.username, connection.address.password)
        if will := connection.will:
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        client.tls_set_context(cast("ssl.SSLContext", self))  # its hook for what wraps the socket
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_socket_register_write = self.wake
        return client

    # -- from the event loop ------------------------------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> int | None:
        """Give paho a message; None when the connection has just ended or has 65,535 messages unacknowledged."""
        info = self._client.publish(topic, payload, qos, retain)
        return self.number << 16 | info.mid if info.rc is OK else None

    def send_pubacks(self) -> None:
        """Send the PUBACKs whose turn it is. rumqttd disconnects a client that acknowledges out of order."""
        waiting = self._unacknowledged
        while waiting and waiting[0].acknowledged:
            receipt = waiting.popleft()
            self.released += receipt.size
            self._client.ack(receipt.mid, 1)

    def forget(self) -> None:
        """Make every later `ack()` do nothing: these packet numbers mean nothing to another connection."""
        self._unacknowledged = deque()

    def end(self, why: str, *, politely: bool = False) -> None:
        """Ask the network thread to end this connection; politely is with DISCONNECT, so that no will is published."""
        self.why, self._politely = self.why or why, politely
        self.wake()

    def wake(self, *_: object) -> None:
        """Make the network thread look around. paho calls this once until what is to be written has been."""
        with contextlib.suppress(OSError):  # a full socket pair has woken already
            self._waker.send(b"\0")

    # -- in the network thread ----------------------------------------------------------------------------------------

    def run(self) -> str:
        """Connect, and serve until the connection ends. Returns why it did."""
        connection, client = self._connection, self._client
        try:
            client.connect(connection.address.host, connection.address.port, connection.keep_alive)
            self._serve()
            if self._politely:
                self._say_goodbye()
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be one
            self.why = self.why or str(error) or type(error).__name__
        finally:
            self.close()
        return self.why

    def close(self) -> None:
        """Give the sockets back; twice does nothing."""
        if self._socket:
            self._socket.close()
        self._wakeup.close()
        self._waker.close()

    def _serve(self) -> None:
        client, sock = self._client, self._socket
        assert sock is not None
        answer_by = time.monotonic() + ANSWER_WITHIN
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup, selectors.EVENT_READ)
            selector.register(sock, selectors.EVENT_READ)
            while not self.why:
                if failed := client.loop_write() if client.want_write() else OK:
                    self.why = self.why or error_string(failed)
                    return
                sock.flush()
                reading = not self._too_much_waits()
                listen(selector, sock, read=reading, write=sock.full)
                at_once = (reading and sock.pending()) or (client.want_write() and not sock.full)
                ready = {key.fileobj for key, _ in selector.select(0 if at_once else 1.0)}
                if self._wakeup in ready:
                    self._wakeup.recv(4096)
                sock.may_read = reading and (
                    sock in ready or sock.pending() > 0
                )  # once, then it is time to write
                while not failed and (sock.may_read or sock.buffered()):
                    failed = client.loop_read()
                if failed := failed or client.loop_misc():
                    self.why = self.why or error_string(failed)
                elif not self._accepted and time.monotonic() > answer_by:
                    self.why = "the broker accepts the connection and does not answer"

    def _too_much_waits(self) -> bool:
        """Whether to read nothing for now; in the long run the sender must be told by dropping the connection."""
        most = self._connection.most_unacknowledged_bytes
        if not self._accepted or self.received - self.released <= most:
            self._full_since = 0.0
            return False
        self._full_since = self._full_since or time.monotonic()
        if time.monotonic() - self._full_since > min(HELD_BACK, self._connection.keep_alive / 2):
            self.too_much = True
            self.why = self.why or f"more than {most} bytes wait for their acknowledgement"
        return True

    def _say_goodbye(self) -> None:
        client, sock = self._client, self._socket
        assert sock is not None
        deadline = time.monotonic() + CLOSE_WITHIN
        sock.wait_at_most(CLOSE_WITHIN)
        while client.want_write() and not client.loop_write() and time.monotonic() < deadline:
            sock.flush()
        client.disconnect()
        client.loop_write()

    def _on_connect(self, client: Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.why = f"the broker refuses the connection: {reason}"
        elif self._connection.subscriptions:
            client.subscribe(self._connection.subscriptions)
        else:
            self._accepted = True
            self._connection.opened(self)

    def _on_subscribe(
        self, _client: Client, _data: Any, _mid: int, reasons: list[Any], _properties: Any
    ) -> None:
        refused = [
            topic
            for (topic, _), reason in zip(self._connection.subscriptions, reasons, strict=False)
            if reason.is_failure
        ]
        if refused:
            self.why = f"the broker refuses the subscription to {', '.join(refused)}"
        else:
            self._accepted = True
            self._connection.opened(self)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        connection, payload = self._connection, bytes(message.payload)
        self.received += len(payload)
        try:
            topic = message.topic
        except UnicodeDecodeError:  # a client may close the connection then [MQTT-1.5.3-1]
            self.why = "a topic came that is not UTF-8"
            return
        ack, receipt = nothing, None
        if message.qos:
            receipt = Receipt(self, message.mid, len(payload))
            self._unacknowledged.append(receipt)
            ack = receipt.ack
        incoming = Message(topic, payload, message.qos, bool(message.retain), connection.clock(), ack)
        connection.incoming.append((incoming, receipt))
        connection.wake()

    def _on_publish(self, _client: Client, _data: Any, mid: int, _reason: Any, _properties: Any) -> None:
        self._connection.acknowledged.append(self.number << 16 | mid)
        self._connection.wake()

    # -- what paho takes for a TLS context ----------------------------------------------------------------------------

    check_hostname = True  # the real context does, so paho need not

    def wrap_socket(self, sock: socket.socket, **options: Any) -> "BufferedSocket":
        """Put a buffer around paho's socket, and TLS under it where the URL says so."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = self._connection.address.tls
        self._socket = BufferedSocket(context.wrap_socket(sock, **options) if context else sock)
        return self._socket


def listen(selector: selectors.BaseSelector, sock: BufferedSocket, *, read: bool, write: bool) -> None:
    """Wait for these events of the socket from now on; a selector knows no empty set of them."""
    events = (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)
    known = selector.get_map().get(sock)
    if known is None and events:
        selector.register(sock, events)
    elif known and not events:
        selector.unregister(sock)
    elif known and known.events != events:
        selector.modify(sock, events)
