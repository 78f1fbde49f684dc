"""What `citylab torture` strikes: the processes, lines and disks of a city, by the names that a plan knows them by."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit

import psutil

from citylab.settings import Settings
from citylab.up import City, Service
from simulators.torture_engines import Disk, OwnEngine
from simulators.torture_lines import Line
from simulators.torture_plan import Fault, Kind

LATENCY = 0.1  # s that a slow line adds to everything


class Targets:
    """Everything that can be struck. services: of the city and gateways, by name; left_out: what cannot, and why."""

    def __init__(
        self, city: City, services: Mapping[str, Service], gateways: Sequence[str], disks: Mapping[str, Disk],
        own: Mapping[str, OwnEngine], seed: int,
    ) -> None:  # fmt: skip
        self._city, self._services, self._gateways = city, services, gateways
        self._disks, self._own, self._seed = disks, own, seed
        self._lines: dict[str, Line] = {}
        self.left_out: list[str] = []

    @asynccontextmanager
    async def lines_open(self) -> AsyncIterator[None]:
        """Lines from the services and from each gateway to the engines, while the block runs."""
        settings = self._city.settings
        names = ["services to broker", "services to store", *self._gateways]
        async with AsyncExitStack() as stack:
            for name in names:
                store = name.endswith("store")
                url = urlsplit(settings.store_url if store else settings.broker_url)
                draw = random.Random(f"line {self._seed} {name}") if name in self._gateways else None
                line = Line(url.hostname or "127.0.0.1", url.port or (5432 if store else 1883), draw=draw)
                self._lines[name] = await stack.enter_async_context(line.open())
            yield

    def through_lines(self, name: str) -> Settings:
        """The settings of a service or a gateway, with the near ends of its lines for addresses."""
        settings = self._city.settings
        broker = self._lines[name if name in self._lines else "services to broker"]
        return settings.replaced(
            broker_url=_through(settings.broker_url, broker),
            store_url=_through(settings.store_url, self._lines["services to store"]),
        )

    def on_the_way(self) -> dict[str, int]:
        """What bad lines did to packs."""
        return {
            "packs doubled on the way": sum(line.doubled for line in self._lines.values()),
            "packs overtaken on the way": sum(line.overtaken for line in self._lines.values()),
        }

    def by_kind(self) -> dict[Kind, Sequence[str]]:
        """What can be struck here, by kind; what cannot is said."""
        processes = ["ingest", "processing", "api", *self._gateways]
        left_out = self.left_out
        lines = list(self._lines)
        cut = list(lines)
        for role in ("broker", "log", "store"):
            if role in self._city.engines or role in self._own:
                processes.append(role)
            elif role != "log" or self.log_port:
                left_out.append(f"kill and pause the {role}: it is not ours (its connections are cut)")
        if "store" in processes:
            processes.append("a backend of the store")
        if self.log_port:
            cut.append("services to log")
            left_out.append(
                "stall and slow down the event log: clients use the address that Kafka tells them (connections are cut)"
            )
        if "outbox" not in self._disks:
            left_out.append("fill an outbox: mounting a small disk needs root on Linux")
        if "log" not in self._disks and not self.log_port:
            left_out.append("fill the log: its small disk needs root on Linux, and fewer readings")
        return {
            "kill": processes, "pause": processes, "cut": cut, "half-close": lines, "stall": lines, "delay": lines,
            "fill": list(self._disks),
        }  # fmt: skip

    @property
    def log_port(self) -> int:
        """Of Kafka, else 0."""
        url = urlsplit(self._city.settings.log_url)
        return (url.port or 9092) if url.scheme == "kafka" else 0

    async def strike(self, fault: Fault) -> bool:
        """Do it, to its end; return whether its target was there."""
        if fault.kind == "fill":
            await self._disks[fault.target].full(fault.seconds)
            return True
        if fault.kind in {"kill", "pause"}:
            return await self._strike_process(fault)
        await self._strike_line(fault)
        return True

    async def _strike_process(self, fault: Fault) -> bool:
        process = self._process(fault.target)
        if process is None:
            return False  # it is dead already
        with suppress(psutil.NoSuchProcess):
            if fault.kind == "kill":
                process.kill()
                return True
            family = [process, *(process.children(recursive=True) if fault.target == "store" else ())]
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    one.suspend()
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                for one in family:
                    with suppress(psutil.NoSuchProcess):
                        one.resume()
            return True
        return False

    async def _strike_line(self, fault: Fault) -> None:
        if fault.target == "services to log":
            for name in ("ingest", "processing"):
                if process := self._process(name):
                    with suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGUSR1)
            return
        line = self._lines[fault.target]
        if fault.kind == "cut":
            line.cut()
        elif fault.kind == "half-close":
            await line.half_close(fault.seconds)
        elif fault.kind == "stall":
            await line.stall(fault.seconds)
        else:
            await line.delay(LATENCY, fault.seconds)

    def _engine(self, role: str) -> int | None:
        """Its process id, if it is ours."""
        return self._own[role].pid if role in self._own else self._city.engines.get(role)

    def _process(self, target: str) -> psutil.Process | None:
        """The process that a target is now; None while there is none."""
        with suppress(psutil.NoSuchProcess):
            if target == "a backend of the store":
                backends = [
                    p
                    for p in psutil.Process(self._engine("store")).children()
                    if "citylab" in " ".join(p.cmdline())
                ]
                return backends[0] if backends else None
            if pid := self._engine(target):
                return psutil.Process(pid)
            child = self._services[target].child if target in self._services else None
            return psutil.Process(child.pid) if child and child.poll() is None else None
        return None


def _through(url: str, line: Line) -> str:
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{login}{at}127.0.0.1:{line.port}").geturl()
