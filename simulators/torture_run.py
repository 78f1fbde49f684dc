"""One run of `citylab torture`: a city of its own, gateways that know what they send, faults while data flows, the truth."""

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from citylab import wiring
from citylab.errors import Unavailable
from citylab.model import SECOND
from citylab.ports import Store
from citylab.settings import Settings
from citylab.times import now
from citylab.up import City, Service, keep_engine_running
from simulators.bench_city import new_folder, prepared_city, value
from simulators.torture_check import Found, Sent, read_ledger, read_outbox
from simulators.torture_engines import Disk, OwnEngine, own_engines
from simulators.torture_gateway import Role
from simulators.torture_plain import PlainSender
from simulators.torture_plan import (
    KILL_POINTS,
    STREAMS,
    Arm,
    Arms,
    Broken,
    Fault,
    Script,
    faults,
    gateway_name,
    scripts,
)
from simulators.torture_ports import Part
from simulators.torture_targets import Targets
from simulators.torture_truth import (
    Difference,
    Row,
    compare_accounts,
    compare_newest,
    compare_rows,
    compare_windows,
    truth,
)

QUIET = 10.0  # s without anything new after which a ledger with holes keeps them
PATIENCE = 90.0  # s that a city that is no longer struck may take until everything is where it belongs
_MOST_ON_A_DISK = 1_000_000  # readings that the log's small disk has room for
_PLAIN = "torture-plain"
_WAITING = (  # packs in the log that are not stored, as processing has said just now
    "SELECT coalesce((SELECT (state ->> 'waiting_events')::int FROM services WHERE name = 'processing'"
    " AND at > now() - interval '3 s'), 1)"
)


class Options(msgspec.Struct, frozen=True):
    """How a run is made.

    seconds: how long data flows, and longer while kill points are still to be hit; rate: readings a second of all
    gateways together; broken: a build known to be wrong.
    """

    seconds: float = 30.0
    gateways: int = 4
    rate: float = 1_000.0
    broken: Broken = ""

    @property
    def outbox_bytes(self) -> int:
        """What an outbox may hold: more than ever waits, so that nothing is given up."""
        return (8 << 20) + int(self.rate / self.gateways * PATIENCE * 100)


class Outcome(msgspec.Struct):
    """What a run has found.

    outage: the longest time without progress, in seconds; recovery: from the last fault's end until everything was
    stored; struck: faults by kind and target, while data flowed; kill_points: how often each was hit; not_hit: those that
    were not.
    """

    seed: int
    seconds: float
    readings: int = 0
    packs: int = 0
    difference: Difference = msgspec.field(default_factory=Difference)
    repeated: int = 0
    outage: float = 0.0
    recovery: float = 0.0
    struck: dict[str, int] = {}
    kill_points: dict[str, int] = {}
    not_hit: list[str] = []
    left_out: list[str] = []
    failures: list[str] = []

    @property
    def passed(self) -> bool:
        """Whether the platform kept its promise, under faults."""
        return not self.difference and not self.failures


async def run_once(settings: Settings, options: Options, seed: int, say: Callable[[str], None]) -> Outcome:
    """Make a run. Ends by itself, and ends what it has started."""
    outcome = Outcome(seed, options.seconds)
    async with AsyncExitStack() as stack:
        folder = await stack.enter_async_context(new_folder())
        disks = {"outbox": Disk(folder / "edge" / gateway_name(0), 2 * options.outbox_bytes)}
        if settings.log_url == "sqlite:" and (options.seconds + PATIENCE) * options.rate <= _MOST_ON_A_DISK:
            disks["log"] = Disk(folder / "log", 256 << 20)
        for name, disk in list(disks.items()):
            if not stack.enter_context(disk.mounted()):
                del disks[name]
        own = await stack.enter_async_context(own_engines(settings, folder, say))
        settings = settings.replaced(**{f"{role}_url": engine.url for role, engine in own.items()})
        city = await stack.enter_async_context(
            prepared_city(settings, "ingest", "processing", "api", folder=folder)
        )
        run = _Run(city, options, outcome, disks, own, say)
        await stack.enter_async_context(run.targets.lines_open())
        await run.all()
        if not outcome.passed:
            kept = Path(tempfile.mkdtemp(prefix="citylab-torture-", dir="/var/tmp"))
            for file in [*folder.glob("*/*.log"), *folder.glob("*/logs/*.log")]:  # of services and of engines
                shutil.copy(file, kept)
            outcome.failures.append(f"what everybody said is kept in {kept}")
    return outcome


class _Run:
    """The parts of one run, by the names that the plan knows them by."""

    def __init__(
        self, city: City, options: Options, outcome: Outcome, disks: dict[str, Disk],
        own: Mapping[str, OwnEngine], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.city, self.options, self.outcome, self.say = city, options, outcome, say
        self.folder = city.settings.data
        self.hits, self.enough = self.folder / "kill-points", self.folder / "enough"
        self.services: dict[str, Service] = {service.name: service for service in city.services}
        gateways = [gateway_name(number) for number in range(options.gateways)]
        self.targets = Targets(city, self.services, gateways, disks, own, outcome.seed)
        self.scripts: list[Script] = []
        self.done: set[str] = set()  # gateways that have sent everything and were told so
        self.calm = False  # nobody is armed any longer, but for points that are still to be hit
        self.plain: PlainSender | None = None
        self._quiet = -1, 0.0  # records in the ledger, and since when
        self._flowed_before = 0  # records in the ledger when the first fault struck

    # -- the course of it --------------------------------------------------------------------------------------------

    async def all(self) -> None:
        """Everything, from the first start to the verdict."""
        outcome = self.outcome
        async with (
            asyncio.TaskGroup() as tasks,
            wiring.opened(wiring.store(self.city.settings, name="torture")) as store,
        ):
            keepers = [tasks.create_task(self._keep(name)) for name in self.services]
            keepers += [tasks.create_task(keep_engine_running(*one)) for one in self.city.embedded.items()]
            try:
                await self._until(lambda: self._connected(store), "a bridge that is connected")
                keepers.append(tasks.create_task(self._gateways(tasks, keepers)))
                await self._until(lambda: self._stored(store), "the first observation")
                watching = tasks.create_task(self._watch(store))
                keepers.append(watching)
                await self._strike_all(store)
                calm = time.monotonic()
                self.say("the faults are over; waiting until everything is where it belongs")
                await self._end_data()
                await self._until(self._ended, "gateways whose outbox is empty")
                await self._until(
                    lambda: self._settled(store), "nothing waits in the log, and no hour to be folded"
                )
                outcome.recovery = round(time.monotonic() - calm, 1)
            except TimeoutError as stalled:
                outcome.failures.append(f"stalled: {stalled}\n{self._story()}")
            finally:
                self.calm = True
                for keeper in keepers:
                    keeper.cancel()
                await asyncio.wait(keepers)
                await self._stop_all()
                self._count_points()
            await self._judge(store)

    async def _gateways(self, tasks: asyncio.TaskGroup, keepers: "list[asyncio.Task[None]]") -> None:
        """Start them; the run's data begins now."""
        options, settings = self.options, self.city.settings
        self.scripts = scripts(
            self.outcome.seed,
            now(),
            gateways=options.gateways,
            rate=options.rate,
            seconds=options.seconds,
            longer=PATIENCE,
        )
        for script in self.scripts:
            self.services[script.gateway] = Service(script.gateway, settings, self.folder / "logs")
            keepers.append(tasks.create_task(self._keep(script.gateway)))
        connect: Any = partial(wiring.broker_connection, self.targets.through_lines(_PLAIN))
        self.plain = PlainSender(_PLAIN, connect, seed=self.outcome.seed, seconds=options.seconds)
        keepers.append(tasks.create_task(self.plain.run()))

    async def _keep(self, name: str) -> None:
        """Run a service or a gateway, armed anew at each start, until it has nothing left to do."""
        gateway = name.startswith("torture-")
        arms = (
            Arms(self.outcome.seed, "edge" if gateway else name, name, self.options.broken)
            if name != "api"
            else None
        )
        service = self.services[name]
        service.settings = self.targets.through_lines(name)
        while True:
            arm = arms.next(self._hit(), only_missing=self.calm) if arms and self._flows() else None
            if name != "api":
                service.command = [sys.executable, "-m", *self._module(name, arm)]
            service.start()
            assert service.child is not None
            code = await _end_of(service.child)
            if gateway and code == 0:
                self.done.add(name)
                return
            await asyncio.sleep(0.1 if code == -signal.SIGKILL else 1.0)

    def _flows(self) -> bool:
        """Whether a gateway still has something to send, or none has begun."""
        return len(self.done) < self.options.gateways

    def _module(self, name: str, arm: Arm | None) -> list[str]:
        part = Part(str(self.hits), arm, self.options.broken, self.targets.log_port)
        for script in self.scripts:
            if script.gateway == name:
                outbox = str(self.folder / "edge" / name)
                role = Role(script, outbox, self.options.outbox_bytes, str(self.enough), part)
                return ["simulators.torture_gateway", msgspec.json.encode(role).decode()]
        return ["simulators.torture_ports", name, msgspec.json.encode(part).decode()]

    # -- faults ------------------------------------------------------------------------------------------------------

    async def _strike_all(self, store: Store) -> None:
        """Carry out the plan. A fault counts when it found its target, and data went on behind it."""
        plan = faults(self.outcome.seed, self.options.seconds, self.targets.by_kind())
        self._flowed_before = await self._stored_patiently(store)
        began = time.monotonic()
        struck: Counter[str] = Counter()
        async with asyncio.TaskGroup() as tasks:
            for fault in plan:
                await asyncio.sleep(max(began + fault.at - time.monotonic(), 0))
                tasks.create_task(self._strike(fault, struck))
            await asyncio.sleep(max(began + 0.8 * self.options.seconds - time.monotonic(), 0))
        self.calm = True
        self.outcome.struck = dict(sorted(struck.items()))
        self.outcome.left_out = self.targets.left_out

    async def _strike(self, fault: Fault, struck: "Counter[str]") -> None:
        flowing = len(self.done) < self.options.gateways
        if await self.targets.strike(fault):
            struck[f"{fault.kind} {fault.target}"] += flowing
            lasting = f" for {fault.seconds} s" if fault.seconds else ""
            self.say(f"{fault.at:6.2f} s  {fault.kind} {fault.target}{lasting}")

    async def _end_data(self) -> None:
        """Let data flow for as long as it is to, and for kill points that are still to be hit."""
        end = self.scripts[0].begin / SECOND + self.options.seconds
        await asyncio.sleep(max(end - time.time(), 0))
        await self._until(self._all_hit, "every kill point is hit")
        self.enough.touch()

    async def _all_hit(self) -> bool:
        return not self._missing()

    # -- watching ----------------------------------------------------------------------------------------------------

    async def _until(self, condition: Callable[[], Awaitable[object]], what: str) -> None:
        """Ask until the answer is true. Raises TimeoutError with what was waited for."""
        deadline = time.monotonic() + PATIENCE
        answer: object = None
        while time.monotonic() < deadline:
            try:
                if answer := await condition():
                    return
            except Unavailable as error:
                answer = error
            await asyncio.sleep(0.1)
        raise TimeoutError(f"not within {PATIENCE:g} s: {what}; the last answer was {answer}")

    async def _connected(self, store: Store) -> bool:
        query = "SELECT count(*) FROM services WHERE name LIKE 'ingest %' AND (state ->> 'connected')::bool"
        return bool(await value(store, query))

    async def _stored(self, store: Store) -> int:
        return int(await value(store, "SELECT coalesce(sum(records), 0)::bigint FROM ledger"))

    async def _stored_patiently(self, store: Store) -> int:
        while True:
            with suppress(Unavailable):
                return await self._stored(store)
            await asyncio.sleep(0.05)

    async def _watch(self, store: Store) -> None:
        """Keep the longest time without progress, while there is something to be stored."""
        last, since = -1, time.monotonic()
        while len(self.done) < self.options.gateways:
            with suppress(Unavailable):
                if (found := await self._stored(store)) != last:
                    last, since = found, time.monotonic()
            self.outcome.outage = max(self.outcome.outage, round(time.monotonic() - since, 1))
            await asyncio.sleep(0.1)

    async def _ended(self) -> bool:
        assert self.plain is not None
        return len(self.done) == self.options.gateways and self.plain.ended

    async def _settled(self, store: Store) -> bool:
        """Whether hours and days are folded, and the ledger has everything or gets nothing more."""
        if await value(store, "SELECT count(*) FROM stale_hours") or await value(store, _WAITING):
            return False
        ledger = await read_ledger(store)
        records = sum(account.records for account in ledger)
        if records != self._quiet[0]:
            self._quiet = records, time.monotonic()
        return not compare_accounts(self._sent(), ledger) or time.monotonic() - self._quiet[1] > QUIET

    def _sent(self) -> dict[tuple[str, int], int]:
        return {(name, outbox.epoch): outbox.last for name, outbox in self._outboxes().items()}

    def _outboxes(self) -> dict[str, Sent]:
        return {script.gateway: read_outbox(self.folder / "edge" / script.gateway) for script in self.scripts}

    # -- the verdict -------------------------------------------------------------------------------------------------

    async def _judge(self, store: Store) -> None:
        outcome = self.outcome
        if outcome.failures:
            return
        difference = outcome.difference
        outboxes = self._outboxes()
        for script in self.scripts:
            names = [script.name(stream) for stream in range(STREAMS)]
            sent = truth(script.columns(), names)[: outboxes[script.gateway].readings]
            difference.add(await _compare(store, script.gateway, sent, ()))
        for name, outbox in outboxes.items():
            outcome.packs += outbox.last
            outcome.readings += outbox.readings
            if outbox.gone or outbox.pending:
                outcome.failures.append(f"{name}: {outbox}")
        assert self.plain is not None
        safe, unsure = self.plain.rows
        if "kill broker" in outcome.struck:
            safe, unsure = [], [*safe, *unsure]  # what the broker had in memory is gone with it
        difference.add(await _compare(store, _PLAIN, safe, unsure))
        ledger = await read_ledger(store)
        difference.add(compare_accounts(self._sent(), ledger))
        outcome.repeated = sum(account.duplicates for account in ledger)
        if not any(outcome.struck.values()):
            outcome.failures.append("no fault struck while data flowed: nothing is proven")
        if await self._stored(store) <= self._flowed_before:
            outcome.failures.append("no data flowed behind the first fault: nothing is proven")
        outcome.struck |= self.targets.on_the_way()
        outcome.struck["clocks set"] = sum(script.jumps for script in self.scripts)

    def _hit(self) -> Counter[str]:
        """The kill points that were hit, and how often."""
        return Counter(self.hits.read_text().split("\n")[:-1] if self.hits.exists() else ())

    def _missing(self) -> list[str]:
        """The kill points that are still to be hit; a broken build has one, and no need of all others."""
        if self.options.broken:
            return []
        hit = self._hit()
        return [point for points in KILL_POINTS.values() for point in points if point not in hit]

    def _count_points(self) -> None:
        outcome = self.outcome
        outcome.kill_points, outcome.not_hit = dict(sorted(self._hit().items())), self._missing()
        if outcome.not_hit:
            outcome.failures.append(f"kill points that were never hit: {', '.join(outcome.not_hit)}")

    async def _stop_all(self) -> None:
        children = [service.child for service in self.services.values() if service.child]
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            try:
                async with asyncio.timeout(5):
                    await _end_of(child)
            except TimeoutError:
                child.kill()
                child.wait()

    def _story(self) -> str:
        """The last words of everybody who still runs or should."""
        words = []
        for name, service in self.services.items():
            if name not in self.done and service.log_file.exists():
                last = service.log_file.read_text(errors="replace").splitlines()[-4:]
                words.append("\n".join([f"--- {name}", *last]))
        return "\n".join(words)


async def _end_of(child: "subprocess.Popen[bytes]") -> int:
    """Its exit code."""
    while (code := child.poll()) is None:  # noqa: ASYNC110 -- a process has no event
        await asyncio.sleep(0.02)
    return code


async def _compare(store: Store, gateway: str, must: Sequence[Row], may: Sequence[Row]) -> Difference:
    """One gateway's rows and what is derived from them."""
    found = Found(store, gateway)
    rows = await found.rows()
    difference = compare_rows(must, may, rows)
    there = {row[:2] for row in rows}
    kept = [row for row in (*must, *may) if row[:2] in there]
    difference.add(compare_windows(kept, await found.windows()))
    difference.add(compare_newest(kept, await found.newest()))
    return difference
