"""`citylab up`: the whole city in one process tree: embedded engines unless URLs are set, services as children."""

import asyncio
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Annotated, Any, Protocol

import msgspec
import structlog
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from citylab import disks, wiring
from citylab.archive_watch import archives
from citylab.cli import Data, run, single
from citylab.errors import ConfigurationError, Unavailable
from citylab.log_watch import Finding, findings, look
from citylab.logs import whether_or_not_there_is_room
from citylab.services import PROCESSING_SILENT, together
from citylab.settings import ADDRESSES, CITY_FILE, Settings, redacted
from citylab.times import now

log = structlog.get_logger()
SERVICES = ("ingest", "processing", "api")
STOP_WITHIN = 4.0  # s for all services together; what is left then is killed, and loses nothing
LOOK_EVERY = 10  # s between two looks at the event log
LOOK_WITHIN = 2.0  # s for one
_LOG_BYTES = 8 << 20


class Service:
    """A service as a child process, started again when it ends, with a growing pause."""

    def __init__(self, name: str, settings: Settings, folder: Path, *, command: Sequence[str] = ()) -> None:
        self.name, self.settings = name, settings
        self.command = [sys.executable, "-m", "citylab", *(command or (name,))]
        self.log_file = folder / f"{name}.log"
        self.child: subprocess.Popen[bytes] | None = None
        self.trouble = ""

    def start(self) -> None:
        """Start it, its log beginning anew when it has grown large."""
        from citylab.adapters.child import start_child

        if self.log_file.exists() and self.log_file.stat().st_size > _LOG_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        environment = os.environ | self.settings.environment()
        self.child = start_child(self.command, log_file=self.log_file, env=environment)

    async def stop(self, within: float) -> None:
        """Ask it to stop, if it was started; kill it after `within` seconds."""
        from citylab.adapters.child import stop

        if self.child:
            await stop(self.child, signal.SIGTERM, within)

    async def keep_running(self) -> None:
        """Start it, and start it again whenever it ends. One that is told to stop by its settings stays stopped."""
        from citylab.adapters.child import last_lines, wait

        pause = 0.2
        while True:
            began = asyncio.get_running_loop().time()
            self.start()
            assert self.child is not None
            code = await wait(self.child)
            if asyncio.get_running_loop().time() - began > 30:
                pause = 0.2
            self.trouble = f"{self.name} ended with {code}"
            log.warning(
                "a service ended; starting it again", service=self.name, code=code, see=str(self.log_file)
            )
            if code == 2:
                raise ConfigurationError(f"{self.name} cannot start:\n{last_lines(self.log_file, 3)}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, 10.0)
            self.trouble = ""


class Engine(Protocol):
    """An embedded engine. Entered again after its process ended, it comes back at the same address."""

    @property
    def process(self) -> "subprocess.Popen[bytes]": ...
    async def __aenter__(self) -> object: ...


async def keep_engine_running(name: str, engine: Engine) -> None:
    """Start an embedded engine again whenever it ends, with a growing pause; services wait for it meanwhile."""
    from citylab.adapters.child import wait

    pause = 0.2
    while True:
        code = await wait(engine.process)
        log.warning("an embedded engine ended; starting it again", engine=name, code=code)
        await asyncio.sleep(pause)
        try:
            await engine.__aenter__()
            pause = 0.2
        except Unavailable as error:
            log.warning("the embedded engine does not start", engine=name, why=str(error))
            pause = min(pause * 2, 10.0)


class City:
    """What runs: the engines' addresses, the services, and where to look."""

    def __init__(self, settings: Settings, *, names: Sequence[str] = SERVICES) -> None:
        self.settings = settings
        self.names = names
        self.services: list[Service] = []
        self.embedded: dict[str, Engine] = {}

    @property
    def engines(self) -> dict[str, int]:
        """The process ids of the embedded engines."""
        return {name: engine.process.pid for name, engine in self.embedded.items()}

    @property
    def url(self) -> str:
        """The live page."""
        host = self.settings.http_host
        return f"http://{'127.0.0.1' if host in {'0.0.0.0', '::'} else host}:{self.settings.http_port}"  # noqa: S104

    @asynccontextmanager
    async def running(self) -> AsyncIterator["City"]:
        """Everything started, in order; stopped in the reverse order, the engines last."""
        data = self.settings.data
        data.mkdir(parents=True, exist_ok=True)
        logs = data / "logs"
        logs.mkdir(exist_ok=True)
        async with AsyncExitStack() as stack:
            stack.enter_context(_alone(data))
            self.settings = _with_port(self.settings)
            self.settings = await _start_engines(self, stack)
            await _migrate(self.settings)
            _write_addresses(self.settings)
            stack.callback((data / CITY_FILE).unlink, missing_ok=True)
            self.services = [Service(name, self.settings, logs) for name in self.names]
            if archive := self.settings.archive:
                command = ("backup", archive, "--continuous")
                self.services.append(Service("archive", self.settings, logs, command=command))
            stack.push_async_callback(self._stop)
            yield self

    async def _stop(self) -> None:
        groups = (("simulate",), SERVICES, ("archive",))  # who sends first, who has all of it last
        for group in groups:
            services = [service for service in self.services if service.name in group]
            await asyncio.gather(*(service.stop(STOP_WITHIN / len(groups)) for service in services))


class _alone:  # noqa: N801 -- reads as a word in `with`
    """One `up` a folder, kept by a lock that dies with the process."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.file: IO[str] | None = None

    def __enter__(self) -> None:
        self.file = (self.data / "up.lock").open("a")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                f"a city is running in {self.data} already: stop it, or give this one a folder of its own with --data"
            ) from None

    def __exit__(self, *error: object) -> None:
        assert self.file is not None
        self.file.close()


def _with_port(settings: Settings) -> Settings:
    """The settings with a port that is free; 0 asks for any. Raises `ConfigurationError` when the one named is not."""
    if settings.http_host not in {"127.0.0.1", "::1", "localhost"} and not settings.open:
        raise ConfigurationError(
            f"CITYLAB_HTTP_HOST={settings.http_host} would open the city to others, and nothing asks for credentials yet:"
            " set CITYLAB_OPEN=1 if that is meant"
        )
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.http_host, settings.http_port))
        except OSError as error:
            raise ConfigurationError(
                f"port {settings.http_port} on {settings.http_host} cannot be used ({error.strerror}):"
                " stop what uses it, or choose another with --port"
            ) from None
        return settings.replaced(http_port=probe.getsockname()[1])


async def _start_engines(city: City, stack: AsyncExitStack) -> Settings:
    """Start the embedded engines that the settings ask for; return the settings with their addresses."""
    settings = city.settings

    async def broker() -> str:
        from citylab.adapters.rumqttd import EmbeddedBroker

        server = await stack.enter_async_context(
            EmbeddedBroker(settings.data / "broker", port=settings.mqtt_port)
        )
        city.embedded["broker"] = server
        return server.url

    async def store() -> str:
        from citylab.adapters.embedded_postgres import EmbeddedPostgres

        server = EmbeddedPostgres(wiring.store_folder(settings))
        await stack.enter_async_context(server)
        city.embedded["store"] = server
        return server.url

    changes: dict[str, str | bool] = {}
    if settings.broker_url.startswith("embedded:"):
        changes |= {"broker_url": await broker(), "embedded_broker": True}
    if settings.store_url.startswith("embedded:"):
        changes["store_url"] = await store()
    if settings.log_url == "sqlite:":
        changes["log_url"] = f"sqlite:{settings.data / 'log'}"
    return settings.replaced(**changes)


async def _migrate(settings: Settings) -> None:
    """Migrate the store; one that is not there is waited for."""
    said = False
    while True:
        try:
            applied = await wiring.migrate(settings)
        except Unavailable as error:
            if not said:
                log.warning("waiting for the store", url=redacted(settings.store_url), why=str(error))
            said = True
            await asyncio.sleep(1)
        else:
            if applied:
                log.info("migrated the store", applied=applied)
            return


def _write_addresses(settings: Settings) -> None:
    """Write where the city's engines are, for every other command: readable by its owner alone, all or nothing."""
    file = settings.data / CITY_FILE
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    partial.touch(0o600)
    addresses = {name: getattr(settings, name) for name in ADDRESSES}
    partial.write_bytes(msgspec.json.encode(addresses))
    partial.rename(file)


async def _of_log(settings: Settings) -> list[Finding]:
    """Whether the event log's retention comes near what is unread, and whether the disks have room."""
    found = await asyncio.to_thread(disks.findings, wiring.folders(settings))
    try:
        async with (
            asyncio.timeout(LOOK_WITHIN),
            wiring.store(settings, name="up") as store,
            wiring.event_log(settings, only_looks=True) as event_log,
        ):
            return [*found, *findings(await look(event_log, store, now=now()))]
    except (Unavailable, TimeoutError):
        return found  # who reads the log says so


async def _state(settings: Settings, services: Sequence[Service], of_log: Sequence[Finding] = ()) -> str:
    """One line: what flows, what waits, what is unwell."""
    unwell = [s.trouble for s in services if s.trouble]
    unwell += [f"{topic}: {text}" for topic, is_unwell, text in of_log if is_unwell]
    figures: dict[str, Any] = {}
    try:
        async with (
            wiring.store(settings, name="up") as store,
            store.transaction(read_only=True) as transaction,
        ):
            rows = await transaction.fetch(
                "SELECT name, state FROM services WHERE starts_with(name, 'processing')"
                " AND abs(extract(epoch FROM now() - at)) < %s",
                (PROCESSING_SILENT,),
            )
            gateways = await transaction.fetch(
                "SELECT count(*) FROM gateways WHERE status ->> 'state' = 'online'"
            )
            archived = await archives(transaction)
        figures = together(dict(rows))
        unwell += [f"{name}: {why}" for name, why in figures.get("problems", {}).items()]
        unwell += [f"archive {one.name}: {one.text}" for one in archived if one.unwell]
        figures["gateways"] = gateways[0][0]
    except Unavailable as error:
        unwell.append(str(error))
    flow = figures.get("observations_per_second")
    parts = [
        "starting" if flow is None else f"{flow:,.0f} observations/s",
        f"lag {figures.get('lag_seconds', 0):.1f} s",
        f"{figures.get('waiting_events', 0):,} packs waiting",
        f"{figures.get('gateways', 0)} gateways online",
        f"unwell: {'; '.join(unwell)}" if unwell else "all well",
    ]
    parts += [f"warning: {topic}: {text}" for topic, is_unwell, text in of_log if not is_unwell]
    return " · ".join(parts)


async def _show_state(city: City) -> None:
    """A line that moves on a terminal; elsewhere a line when it has something new to say, at most every 10 s."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            for second in count():
                if second % LOOK_EVERY == 0:
                    of_log = await _of_log(city.settings)
                live.update(Text(await _state(city.settings, city.services, of_log)))
                await asyncio.sleep(1)
    while True:
        state = await _state(city.settings, city.services, await _of_log(city.settings))
        with whether_or_not_there_is_room():
            print(state, flush=True)  # noqa: T201 -- the command's output
        await asyncio.sleep(10)


async def serve(settings: Settings, *, simulate: bool) -> None:
    """Run the city until cancelled."""
    async with City(settings, names=(*SERVICES, "simulate") if simulate else SERVICES).running() as city:
        typer.echo(
            f"Citylab is up in {city.settings.data}\n"
            f"  live page    {city.url}/\n"
            f"  open API     {city.url}/v1.1\n"
            f"  its pages    {city.url}/docs\n"
            f"  MQTT broker  {redacted(city.settings.broker_url)}\n"
            f"  logs         {city.settings.data / 'logs'}\n"
            "Ctrl-C stops it; the next start goes on with the same data."
        )
        async with asyncio.TaskGroup() as tasks:
            for name, engine in city.embedded.items():
                tasks.create_task(keep_engine_running(name, engine))
            for service in city.services:
                tasks.create_task(service.keep_running())
            tasks.create_task(_show_state(city))


def up(
    data: Data = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port of the live page and the API.")
    ] = None,
    simulate: Annotated[
        bool, typer.Option(help="Play a small synthetic city, with an hour of history.")
    ] = True,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Processes that share the packs. Default: CITYLAB_WORKERS, else 1."),
    ] = None,
) -> None:
    """Run the whole city on this machine, and show a status that moves.

    Engines whose URL is not set are embedded: nothing else needs to be installed. What is in --data stays, and the
    next start goes on with it.
    """
    with _terminal_of_our_own():
        run(
            "up",
            lambda settings: serve(settings, simulate=simulate),
            data=data,
            of_running_city=False,
            http_port=port,
            workers=workers,
        )


@contextmanager
def _terminal_of_our_own() -> Iterator[None]:
    """Under `make demo`, take a Ctrl-C for ourselves: make would take it as its own failure, whatever we exit with."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR) if "MAKELEVEL" in os.environ else None
    except OSError:
        terminal = None
    if terminal is None:
        yield
        return
    group = os.getpgrp()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or giving the terminal back would stop us
    try:
        if os.tcgetpgrp(terminal) == group:
            os.setpgid(0, 0)
            os.tcsetpgrp(terminal, os.getpgrp())
        yield
    finally:
        os.tcsetpgrp(terminal, group)
        os.close(terminal)


app = single(up)
