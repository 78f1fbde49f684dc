"""The socket that paho-mqtt reads and writes, with a buffer each way."""

import contextlib
import socket
import ssl

READ_AT_ONCE = 256 << 10  # bytes; memory is touched only as far as they come
HELD_FOR_SENDING = 256 << 10  # bytes that leave in one system call


class BufferedSocket:
    """What paho reads byte by byte comes out of a buffer, and what it writes packet by packet leaves together."""

    def __init__(self, sock: socket.socket) -> None:
        self.may_read = True
        self._sock = sock
        self._input = memoryview(bytearray(READ_AT_ONCE))
        self._at = self._end = 0
        self._output = bytearray()
        self._patient = False

    def buffered(self) -> bool:
        """Whether there is something to read without asking the system."""
        return self._at < self._end

    def pending(self) -> int:
        """Bytes that are here although the system's socket may be empty: ours and those that TLS has decrypted."""
        inner = self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0
        return self._end - self._at + inner

    def recv(self, size: int) -> bytes:
        """Give at most `size` bytes; ask the system only once after `may_read` was set."""
        if self._at == self._end:
            if not self.may_read:
                raise BlockingIOError
            self.may_read = False
            try:
                self._at, self._end = 0, self._sock.recv_into(self._input)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise BlockingIOError from None
        start = self._at
        self._at = min(start + size, self._end)
        return bytes(self._input[start : self._at])

    def send(self, data: bytes) -> int:
        """Take a packet; when much is waiting, send first."""
        if len(self._output) >= HELD_FOR_SENDING:
            self.flush()
            if len(self._output) >= HELD_FOR_SENDING:
                raise BlockingIOError
        self._output += data
        return len(data)

    def flush(self) -> None:
        """Give the system as much as it takes."""
        while self._output:
            try:
                sent = self._sock.send(self._output)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            del self._output[:sent]

    @property
    def full(self) -> bool:
        """Whether something waits until the system takes more."""
        return bool(self._output)

    def wait_at_most(self, seconds: float) -> None:
        """Block in `flush` and `close` from now on, for so long at a time."""
        self._patient = True
        self._sock.settimeout(seconds)

    def close(self) -> None:
        """Send what is left if that works at once, and let the broker close first where we were told to wait."""
        if self._sock.fileno() == -1:
            return
        with contextlib.suppress(OSError), self._sock:
            self.flush()
            if self._patient:
                # Closing with unread bytes would reset the connection and take our DISCONNECT with it.
                self._sock.shutdown(socket.SHUT_WR)
                while self._sock.recv(READ_AT_ONCE):
                    pass

    def fileno(self) -> int:
        """The system's number of the socket."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """As a socket's."""
        self._sock.setblocking(flag)

    def settimeout(self, seconds: float | None) -> None:
        """As a socket's."""
        self._sock.settimeout(seconds)

    def do_handshake(self) -> None:
        """Agree on keys and check the certificate, where there is TLS."""
        if isinstance(self._sock, ssl.SSLSocket):
            self._sock.do_handshake()
