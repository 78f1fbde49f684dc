"""TCP lines that can be cut, half closed, stalled and slowed down, and that give MQTT packs twice or in another order."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK = 64 << 10
_PUBLISH = 3  # MQTT 3.1.1 §2.2.1
_HOLD = 0.2  # s for which a pack waits for the one that overtakes it
_OVERTAKING = 0.05  # of packs, each: come twice at once; twice, later; after the next one
_LATER = 3  # packs that wait to come again before they do so together
_MARK = b"/packs/numbered"
_AT_ONCE = struct.pack("ii", 1, 0)  # closing sends a reset


class Line:
    """A line to one server. `port` is its near end on loopback.

    draw: makes it a bad one, on which packs of gateways come twice or overtake each other; None leaves bytes alone.
    doubled, overtaken: how many did.
    """

    def __init__(self, host: str, port: int, *, draw: random.Random | None = None) -> None:
        self._server = (host, port)
        self._draw = draw
        self._connections: set[_Connection] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0
        self.latency = 0.0
        self.doubled = self.overtaken = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Line"]:
        """Listen on a free port of loopback until the block ends."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self._flowing.set()
            self.cut()
            await asyncio.gather(*(connection.done for connection in list(self._connections)))

    def cut(self) -> None:
        """Reset every connection."""
        for connection in self._connections:
            connection.reset()

    async def half_close(self, seconds: float) -> None:
        """The server sees the end of every connection; the client sees nothing for a while, then a reset."""
        some = list(self._connections)
        for connection in some:
            connection.half_close()
        await asyncio.sleep(seconds)
        for connection in some:
            connection.reset()

    async def stall(self, seconds: float) -> None:
        """Nothing comes through for a while, in either direction; nothing is lost."""
        self._flowing.clear()
        await asyncio.sleep(seconds)
        self._flowing.set()

    async def delay(self, latency: float, seconds: float) -> None:
        """Everything takes `latency` seconds longer for a while."""
        self.latency = latency
        await asyncio.sleep(seconds)
        self.latency = 0.0

    async def _accept(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            answers, far = await asyncio.open_connection(*self._server)
        except OSError:
            back.transport.abort()
            return
        connection = _Connection(back, far)
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(
                    self._carry_packs(near, connection) if self._draw else self._carry(near, connection)
                )
                tasks.create_task(self._carry_back(answers, connection))
        finally:
            connection.reset()
            self._connections.discard(connection)
            connection.done.set_result(None)

    async def _carry(self, source: asyncio.StreamReader, connection: "_Connection") -> None:
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                await self._hand_over(data, connection.far, connection)
        connection.end_at_server()

    async def _carry_back(self, source: asyncio.StreamReader, connection: "_Connection") -> None:
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                await self._hand_over(data, connection.near, connection)
        if connection.mute:
            await connection.over.wait()
        else:
            connection.near.close()

    async def _hand_over(self, data: bytes, target: asyncio.StreamWriter, connection: "_Connection") -> None:
        if self.latency:
            await asyncio.sleep(self.latency)
        await self._flowing.wait()
        if target.is_closing():
            raise ConnectionResetError
        if connection.mute:  # nobody is at the other end any longer
            return
        target.write(data)
        await target.drain()

    async def _carry_packs(self, source: asyncio.StreamReader, connection: "_Connection") -> None:
        """As `_carry`, packet by packet."""
        assert self._draw is not None
        shuffle = _Shuffle(self, self._draw)
        reading = asyncio.ensure_future(_packet(source))
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    done, _ = await asyncio.wait({reading}, timeout=_HOLD if shuffle.waiting else None)
                    packets = shuffle.add(reading.result()) if done else shuffle.take()
                    if done:
                        reading = asyncio.ensure_future(_packet(source))
                    if packets:
                        await self._hand_over(b"".join(packets), connection.far, connection)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        connection.end_at_server()


class _Shuffle:
    """Packets in, packets out: some packs twice, at once or later, and some after the one that comes next."""

    def __init__(self, line: Line, draw: random.Random) -> None:
        self._line, self._draw = line, draw
        self._overtaken: list[bytes] = []  # at most one
        self._again: list[bytes] = []

    @property
    def waiting(self) -> bool:
        """Whether something is held back."""
        return bool(self._overtaken or self._again)

    def take(self) -> list[bytes]:
        """What is held back."""
        packets, self._overtaken, self._again = self._overtaken + self._again, [], []
        return packets

    def add(self, packet: bytes) -> list[bytes]:
        """What is to be sent now that this one has come."""
        chance = self._draw.random() if _is_pack(packet) else 1.0
        if chance < _OVERTAKING and not self._overtaken:
            self._overtaken = [packet]
            return []
        packets, self._overtaken = [packet, *self._overtaken], []
        self._line.overtaken += len(packets) - 1
        if _OVERTAKING <= chance < 2 * _OVERTAKING:
            packets.append(packet)
            self._line.doubled += 1
        elif 2 * _OVERTAKING <= chance < 3 * _OVERTAKING:
            self._again.append(packet)
            self._line.doubled += 1
        if len(self._again) > _LATER:
            packets += self.take()
        return packets


def _is_pack(packet: bytes) -> bool:
    return packet[0] >> 4 == _PUBLISH and _MARK in packet[:200]


class _Connection:
    """One connection that goes through a line. near: the end at the client; far: the end at the server."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.near, self.far = near, far
        self.mute = False  # what the server says no longer reaches the client
        self.over = asyncio.Event()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def reset(self) -> None:
        for end in (self.near, self.far):
            if not end.transport.is_closing():
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            end.transport.abort()
        self.over.set()

    def half_close(self) -> None:
        """Let the server see the end. What either says from now on does not come through."""
        self.mute = True
        self.end_at_server()

    def end_at_server(self) -> None:
        if not self.far.is_closing():
            with suppress(OSError):
                self.far.write_eof()


async def _packet(source: asyncio.StreamReader) -> bytes:
    """One MQTT control packet, whole."""
    head = bytearray(await source.readexactly(2))
    while head[-1] & 0x80:
        head += await source.readexactly(1)
    length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(head[1:]))
    return bytes(head) + await source.readexactly(length)
