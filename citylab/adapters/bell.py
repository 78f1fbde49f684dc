"""Wakes readers in other processes when something was written, through Unix datagram sockets in one folder.

Best effort: a reader also looks by itself now and then, and where there are no such sockets that is all it does.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LONGEST_ADDRESS = 100  # bytes; systems allow 104 to 108


class Bell:
    """The readers' sockets in `folder`. One that nobody listens to any more is removed by the next ring."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ring(self) -> None:
        """Wake everybody who listens. Never blocks, never fails; any thread may call it."""
        if not hasattr(socket, "AF_UNIX"):
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            with _reachable(self._folder) as folder:
                for name in os.listdir(self._folder):  # noqa: PTH208  names, quickly
                    try:
                        sender.sendto(b"\0", f"{folder}/{name}")
                    except BlockingIOError:
                        pass  # its buffer is full: it is being woken already
                    except ConnectionRefusedError:
                        (self._folder / name).unlink(missing_ok=True)  # a reader that was killed
                    except OSError:
                        pass  # gone in this moment

    @contextmanager
    def listen(self, rung: asyncio.Event) -> Iterator[bool]:
        """Set the event at every ring. Yields False when this system gives no socket for it."""
        try:
            listener = self._bind()
        except OSError:
            yield False
            return
        path, receiver = listener
        loop = asyncio.get_running_loop()
        loop.add_reader(receiver, _hear, receiver, rung)
        try:
            yield True
        finally:
            loop.remove_reader(receiver)
            receiver.close()
            with suppress(OSError):  # the folder is gone; a socket that stays is removed by the next ring
                path.unlink()

    def _bind(self) -> tuple[Path, socket.socket]:
        if not hasattr(socket, "AF_UNIX"):
            raise OSError("no Unix sockets")
        self._folder.mkdir(exist_ok=True)
        path = self._folder / secrets.token_hex(8)
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            receiver.setblocking(False)
            with _reachable(self._folder) as folder:
                receiver.bind(f"{folder}/{path.name}")
        except BaseException:
            receiver.close()
            raise
        return path, receiver


def _hear(receiver: socket.socket, rung: asyncio.Event) -> None:
    with suppress(BlockingIOError):
        while receiver.recv(1):
            pass
    rung.set()


@contextmanager
def _reachable(folder: Path) -> Iterator[str]:
    """The folder's name, or one that is short enough for a socket's address: Linux offers one."""
    if len(os.fsencode(folder)) + 20 <= _LONGEST_ADDRESS:
        yield str(folder)
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
