"""Ports that kill their process at a named point, and two that are wrong on purpose.

`citylab torture` starts services through here: what `citylab.wiring` gives them is wrapped, they themselves are what runs
in production. A point that is hit is written into a file, which survives the process.
"""

import asyncio
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from citylab import wiring
from citylab.cli import COMMANDS
from citylab.model import Message, NewEvent, Topic
from simulators.torture_plan import Arm, Broken

if TYPE_CHECKING:
    from citylab.writes import Saved, Write

HASTE = 0.3  # s for which the bridge of a broken build believes that the log has a pack
_POINTS = {Topic.PACKS: "append", Topic.UPDATES: "update"}


class Part(msgspec.Struct, frozen=True):
    """What a service of a run is told. hits: the file of the points that were hit; log_port: of Kafka, else 0."""

    hits: str
    arm: Arm | None = None
    broken: Broken = ""
    log_port: int = 0


class KillPoint:
    """The point at which this process kills itself, if it is armed."""

    def __init__(self, arm: Arm | None, hits: Path) -> None:
        self.armed = arm.point if arm else ""
        self._hits = hits
        self._left = arm.nth if arm else 0

    def reach(self, point: str) -> None:
        """Go on, or do not."""
        if self.armed != point:
            return
        self._left -= 1
        if self._left <= 0:
            with self._hits.open("a") as file:
                file.write(f"{point}\n")
            os.kill(os.getpid(), signal.SIGKILL)


class _Wrapped:
    """Everything that is not said otherwise goes to the port that it stands for."""

    def __init__(self, port: Any, kill: KillPoint) -> None:
        self.port, self.kill = port, kill

    def __getattr__(self, name: str) -> Any:
        return getattr(self.port, name)

    async def __aenter__(self) -> Self:
        await self.port.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.port.__aexit__(*error)


class KillingLog(_Wrapped):
    """Before and after: append (of packs), update (of what was stored), place (of a consumer group)."""

    async def append(self, topic: Topic, events: Sequence[NewEvent]) -> None:
        """Append."""
        point = _POINTS.get(topic, "another append")
        self.kill.reach(f"before {point}")
        await self.port.append(topic, events)
        self.kill.reach(f"after {point}")

    async def commit(self, *arguments: Any) -> None:
        """Keep a consumer group's place."""
        self.kill.reach("before place")
        await self.port.commit(*arguments)
        self.kill.reach("after place")


class HastyLog(_Wrapped):
    """Wrong on purpose: it says that it has packs before it has them, so that they are acknowledged first."""

    def __init__(self, port: Any, kill: KillPoint) -> None:
        super().__init__(port, kill)
        self._late: set[asyncio.Task[None]] = set()

    async def append(self, topic: Topic, events: Sequence[NewEvent]) -> None:
        """Append, later."""
        if topic is not Topic.PACKS:
            await self.port.append(topic, events)
            return
        task = asyncio.create_task(self._later(topic, events))
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _later(self, topic: Topic, events: Sequence[NewEvent]) -> None:
        await asyncio.sleep(HASTE)
        await self.port.append(topic, events)


class ForgetfulLog(_Wrapped):
    """What makes a broken build's losses last: it asks no gateway for what the ledger misses."""

    async def append(self, topic: Topic, events: Sequence[NewEvent]) -> None:
        """Append what is no question."""
        await self.port.append(
            topic, [e for e in events if not e.headers.get("topic", "").endswith("/resend")]
        )


class KillingStore(_Wrapped):
    """Before copy; after copy, which is before the commit; after commit: of a batch. Before and after: fold."""

    async def save(self, write: "Write") -> "Saved":
        """Save."""
        rows = len(write.rows)
        if rows:
            self.kill.reach("before copy")
        if rows and self.kill.armed == "after copy":
            async with (
                self.port.transaction() as transaction
            ):  # what `Store.save` does, with a stop in between
                saved: Saved = await transaction.save(write)
                self.kill.reach("after copy")
        else:
            saved = await self.port.save(write)
        if rows:
            self.kill.reach("after commit")
        return saved

    async def fold(self) -> int:
        """Fold."""
        self.kill.reach("before fold")
        hours: int = await self.port.fold()
        self.kill.reach("after fold")
        return hours


class PositionFirstStore(_Wrapped):
    """Wrong on purpose: how far the log is read is committed by itself, before what was read."""

    async def save(self, write: "Write") -> "Saved":
        """Save in two transactions."""
        from citylab.writes import bookkeeping  # noqa: PLC0415 -- a gateway needs no numpy of the platform's

        if len(write.rows):
            await self.port.save(bookkeeping(spans=write.spans))
            self.kill.reach("between position and rows")
            write = replace(write, spans=())
        saved: Saved = await self.port.save(write)
        return saved


class KillingConnection(_Wrapped):
    """Before and after: puback, acknowledgement (to a gateway), pack (of a gateway), publish (anything else)."""

    async def messages(self, **how: Any) -> list[Message]:
        """Messages whose `ack()` is such a point."""
        return [
            message._replace(ack=partial(self._puback, message.ack))
            for message in await self.port.messages(**how)
        ]

    def _puback(self, ack: Callable[[], None]) -> None:
        self.kill.reach("before puback")
        ack()
        self.kill.reach("after puback")

    def publish(self, topic: str, payload: bytes, **how: Any) -> int | None:
        """Publish."""
        kind = topic.rpartition("/")[2]
        point = {"acks": "acknowledgement", "numbered": "pack"}.get(kind, "publish")
        self.kill.reach(f"before {point}")
        packet: int | None = self.port.publish(topic, payload, **how)
        self.kill.reach(f"after {point}")
        return packet


def cut_connections(port: int) -> None:
    """Shut this process's TCP connections to a port, as a network would that loses them."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as end:
            if end.family != socket.AF_UNIX and end.getpeername()[1] == port:
                end.shutdown(socket.SHUT_RDWR)


def wrap_wiring(part: Part) -> KillPoint:
    """From now on `citylab.wiring` gives ports that kill."""
    kill = KillPoint(part.arm, Path(part.hits))
    logs: list[type[_Wrapped]] = [KillingLog]
    if part.broken:
        logs += [ForgetfulLog, HastyLog] if part.broken == "ack-first" else [ForgetfulLog]
    wrapped: dict[str, Sequence[type[_Wrapped]]] = {
        "event_log": logs,
        "store": [PositionFirstStore if part.broken == "position-first" else KillingStore],
        "broker_connection": [KillingConnection],
    }
    for name, wrappers in wrapped.items():
        setattr(wiring, name, _wrapping(getattr(wiring, name), wrappers, kill))
    if part.log_port:
        signal.signal(signal.SIGUSR1, lambda *_: cut_connections(part.log_port))
    return kill


def _wrapping(
    make: Callable[..., Any], wrappers: Sequence[type[_Wrapped]], kill: KillPoint
) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **more: Any) -> Any:
        port = make(*arguments, **more)
        for wrapper in wrappers:
            port = wrapper(port, kill)
        return port

    return wrapped


def main() -> None:
    """Run a service: its name, then a `Part` in JSON."""
    name, part = sys.argv[1:]
    wrap_wiring(msgspec.json.decode(part, type=Part))
    importlib.import_module(COMMANDS[name].module).app(args=[], prog_name=f"citylab {name}")


if __name__ == "__main__":
    main()
