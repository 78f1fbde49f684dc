"""MQTT 3.1.1 connections that come back by themselves: one network thread each, which never waits for the event loop."""

import asyncio
import contextlib
import random
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

import structlog

from citylab.adapters.mqtt_session import Receipt, Session
from citylab.errors import ConfigurationError
from citylab.model import Message, Micros, Will
from citylab.times import now

log = structlog.get_logger(__name__)

MOST_UNACKNOWLEDGED = 64 << 20  # bytes
FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # s between two tries, before the jitter


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
        # Both's.
        self._stop = threading.Event()
        self._settled = threading.Event()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._current = Session(self, 1, 0)
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
