"""The embedded MQTT broker: rumqttd, a Rust program in the wheel `iotcore`, as a child process on loopback.

Its sessions and retained messages live in memory. After a restart outboxes send again and agents publish their
descriptors anew, so nothing of theirs is lost with it.

Its router is a thread that can panic when connections are cut; then the process runs on, takes connections and answers
none of them. So it is asked all the time, and one that is silent is killed, for its supervisor to start again.
"""

import asyncio
import contextlib
import importlib.util
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from citylab.adapters.child import last_lines, start_child, stop
from citylab.errors import ConfigurationError, Unavailable

log = structlog.get_logger(__name__)

HOST = "127.0.0.1"
READY_WITHIN = 20.0  # s
ASK_EVERY, ANSWER_WITHIN = 2.0, 3.0  # s
MOST_SILENCES = 3  # in a row
# MQTT 3.1.1, clean session, keep-alive 10 s, client id "-"
_CONNECT = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x0a\x00\x01-"
_CONNACK = b"\x20\x02\x00\x00"
_DISCONNECT = b"\xe0\x00"

# For each filter that somebody has ever subscribed to, rumqttd keeps the newest `max_segment_count` segments of
# messages, read or not, and what is older is gone for a subscriber that stalls, PUBACKed or not. So the segments of the
# platform's own few filters are larger than the windows in flight (256 MiB: 400 gateways with 256 packs of 2.5 KB) and
# those of filters that every gateway or every user has of their own are small: at worst a city of 1,000 gateways
# reaches 5 x 256 MiB for the former and some 300 MiB for the latter, and 16 MiB for each filter below v1.1/, of which two
# are the platform's own (a filter that two custom segments match gets either). Sizes count payload and topic only.
# In flight to a client are at most 100 messages: rumqttd 0.20 has that compiled in.
# The version 5 listener is a second one because a version 5 client gets no SUBACK on a version 4 listener.
_CONFIGURATION = """\
# Written by Citylab at every start.
id = 0

[router]
id = 0
max_connections = 10000
max_outgoing_packet_count = 1000
max_segment_size = 16777216
max_segment_count = 16
    [router.custom_segment."citylab/v1/gateways/+/acks"]
    max_segment_size = 32768
    max_segment_count = 2
    [router.custom_segment."citylab/v1/gateways/+/resend"]
    max_segment_size = 32768
    max_segment_count = 2
    [router.custom_segment."citylab/v1/gateways/+/commands"]
    max_segment_size = 32768
    max_segment_count = 2
    [router.custom_segment."v1.1/#"]
    max_segment_size = 1048576
    max_segment_count = 16

[v4.1]
name = "mqtt-3.1.1"
listen = "{host}:{port}"
next_connection_delay_ms = 1
    [v4.1.connections]
    connection_timeout_ms = 60000
    max_payload_size = 524288
    max_inflight_count = 100
    dynamic_filters = true

[v5.1]
name = "mqtt-5"
listen = "{host}:{port_5}"
next_connection_delay_ms = 1
    [v5.1.connections]
    connection_timeout_ms = 60000
    max_payload_size = 524288
    max_inflight_count = 100
    dynamic_filters = true
"""


class EmbeddedBroker:
    """rumqttd with its configuration and log in `folder`. `async with` starts and stops it; `url` reaches it.

    It is killed when it has answered nobody for some 15 s; entered again, it comes back at the same address.

    port: of MQTT 3.1.1; port_5: of MQTT 5; 0 takes a free one. Start it from the main thread: it ends with the thread.
    Raises ConfigurationError for a port that is taken, Unavailable when the broker does not come up.
    """

    def __init__(self, folder: Path, *, port: int = 0, port_5: int = 0) -> None:
        self.folder = folder.absolute()
        self.port = port
        self.port_5 = port_5
        self._child: subprocess.Popen[bytes] | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where clients of MQTT 3.1.1 connect."""
        return f"mqtt://{HOST}:{self.port}"

    @property
    def url_5(self) -> str:
        """Where clients of MQTT 5 connect."""
        return f"mqtt://{HOST}:{self.port_5}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The broker's process, for a supervisor that watches it."""
        assert self._child is not None
        return self._child

    async def __aenter__(self) -> Self:
        if importlib.util.find_spec("iotcore") is None:
            raise ConfigurationError(
                "the embedded broker needs the package iotcore: pip install citylab[platform]"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"cannot make the broker's folder {self.folder}: {error.strerror}"
            ) from error
        self.port, self.port_5 = _take_ports(self.port, self.port_5)
        configuration = self.folder / "rumqttd.toml"
        configuration.write_text(_CONFIGURATION.format(host=HOST, port=self.port, port_5=self.port_5))
        log_file = self.folder / "rumqttd.log"
        self._child = start_child(
            # -P: a folder named iotcore where we are started is not the package.
            # CRITICAL: its spans would come out as an error a packet.
            [sys.executable, "-P", "-m", "iotcore", "--config", configuration, "--log-level", "CRITICAL"],
            log_file=log_file,
        )
        try:
            _allow_many_files(self._child.pid)
            async with asyncio.timeout(READY_WITHIN):
                while not await _answers(self.port, within=1.0):
                    if self._child.poll() is not None:
                        raise Unavailable("MQTT broker", f"rumqttd did not start:\n{last_lines(log_file)}")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            await stop(self._child)
            raise Unavailable("MQTT broker", f"rumqttd does not answer:\n{last_lines(log_file)}") from None
        except BaseException:
            await stop(self._child)
            raise
        self._watching = asyncio.create_task(self._watch(self._child))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        if self._child is not None:
            await stop(self._child)
            self._child = None

    async def _watch(self, child: "subprocess.Popen[bytes]") -> None:
        """Kill a broker that runs and answers nobody. Ends with it."""
        silences = 0
        while child.poll() is None:
            silences = 0 if await _answers(self.port, within=ANSWER_WITHIN) else silences + 1
            if silences == MOST_SILENCES:
                log.warning("the embedded MQTT broker answers nobody: killing it", process=child.pid)
                child.send_signal(signal.SIGKILL)
                return
            await asyncio.sleep(ASK_EVERY)


def _take_ports(*wanted: int) -> list[int]:
    """Name ports that nobody listens on; 0 becomes a free one. Raises ConfigurationError."""
    with contextlib.ExitStack() as held:
        taken = []
        for port in wanted:
            probe = held.enter_context(socket.socket())
            # As rumqttd does; without it the connections of a broker that has just stopped would be in the way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                probe.listen()
            except OSError as error:
                raise ConfigurationError(
                    f"the embedded MQTT broker cannot listen on {HOST}:{port}: {error.strerror}."
                    " Does another broker run there? Stop it, use it (CITYLAB_BROKER_URL=mqtt://host:port), or take another port (CITYLAB_MQTT_PORT)"
                ) from error
            taken.append(probe.getsockname()[1])
        return taken


def _allow_many_files(pid: int) -> None:
    """Let the child have as many connections as the system lets it, where the system can be asked."""
    if sys.platform == "linux":
        import resource  # noqa: PLC0415 -- not on every system that this module is imported on

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(OSError):  # it has ended already, which the caller sees
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))


async def _answers(port: int, *, within: float) -> bool:
    """Whether a broker answers CONNECT with CONNACK."""
    writer = None
    try:
        async with asyncio.timeout(within):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(_CONNECT)
            answered = await reader.readexactly(len(_CONNACK)) == _CONNACK
            writer.write(_DISCONNECT)
            return answered
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
    finally:
        if writer:
            writer.close()
