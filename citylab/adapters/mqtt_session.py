"""One network connection of an MQTT client, driven in its network thread through paho-mqtt.

paho is driven through its interface for foreign event loops (`loop_read`, `loop_write`, `loop_misc`), because its own
loop asks the system for one to four bytes at a time, and each such call hands the interpreter to another thread.
"""

import contextlib
import selectors
import socket
import ssl
import time
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from paho.mqtt.client import Client, MQTTMessage, error_string
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from citylab.adapters.mqtt_socket import BufferedSocket
from citylab.model import Message

if TYPE_CHECKING:
    from citylab.adapters.mqtt import MqttConnection

OK = MQTTErrorCode.MQTT_ERR_SUCCESS
ANSWER_WITHIN = 10.0  # s until CONNACK and every SUBACK
CLOSE_WITHIN = 2.0  # s for what is still to be sent when we close
HELD_BACK = 5.0  # s for which we do not read; longer, and a broker would think us dead


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

    def __init__(self, connection: "MqttConnection", number: int, held: int) -> None:
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
