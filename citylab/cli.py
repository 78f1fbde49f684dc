"""The command line: one table of commands, each imported only when it is called, so that a gateway needs no platform."""

import asyncio
import importlib
import importlib.util
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias, cast

import typer

from citylab.errors import CitylabError, ConfigurationError
from citylab.logs import start_logging
from citylab.settings import Settings

Data: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="The city's folder. Default: $CITYLAB_DATA, else .citylab (as root /var/lib/citylab).",
    ),
]


class Command(NamedTuple):
    """Where a command is, what it does in a line, and a module that only the extra which it needs brings."""

    module: str
    about: str
    needs: str
    extra: str


COMMANDS = {
    "up": Command("citylab.up", "Run the whole city on this machine: engines, services, live page.", "psycopg", "platform"),
    "doctor": Command("citylab.doctor", "Show the resolved settings and try every engine.", "psycopg", "platform"),
    "migrate": Command("citylab.migrating", "Bring the store's schema up to date.", "psycopg", "platform"),
    "positions": Command("citylab.positions", "Where processing stands in the event log, and how to start anew.", "psycopg", "platform"),
    "backup": Command("citylab.backing_up", "Write the store into a folder, while services go on.", "psycopg", "platform"),
    "restore": Command("citylab.restoring", "Put a backup into a store, or check it.", "psycopg", "platform"),
    "edge": Command("edge.cli", "Run a gateway: a driver, an outbox on disk, a connection to the broker.", "paho", "edge"),
    "ingest": Command("ingest.cli", "Run the bridge from the MQTT broker into the event log.", "aiokafka", "platform"),
    "processing": Command("processing.cli", "Run the service from the event log into the store.", "psycopg", "platform"),
    "api": Command("api.cli", "Run the open API and the live page.", "fastapi", "platform"),
    "simulate": Command("simulators.simulate", "Play a small synthetic city in real time.", "psycopg", "platform"),
    "replay": Command("simulators.replay", "Send a recording through the broker like any gateway would.", "psycopg", "platform"),
    "ledger": Command("citylab.ledger_command", "Show what came of each gateway and what is missing, since when and why.", "psycopg", "platform"),
    "rejections": Command("citylab.rejections_command", "Show what was refused and why; have it taken up again.", "psycopg", "platform"),
    "dashboards": Command("dashboards.cli", "Provision Grafana: folder, data source, dashboards.", "grafana_client", "platform"),
    "bench": Command("simulators.bench", "Measure the platform on this machine.", "psycopg", "platform"),
    "torture": Command("simulators.torture", "Prove that nothing is lost, whatever is killed or cut.", "psycopg", "platform"),
}  # fmt: skip

app = typer.Typer(
    name="citylab",
    help="An open sensor platform for a city that lets others experiment on its streets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def citylab() -> None:
    """Make it a group of commands even where there is only one, as on a gateway."""


def _pass_on(name: str, command: Command) -> Callable[[typer.Context], None]:
    def run_command(context: typer.Context) -> None:
        module = importlib.import_module(command.module)
        module.app(args=context.args, prog_name=f"citylab {name}")

    return run_command


for _name, _command in COMMANDS.items():
    if importlib.util.find_spec(_command.needs):  # help lists what works, nothing else
        app.command(
            _name,
            help=_command.about,
            add_help_option=False,
            context_settings={
                "allow_extra_args": True,
                "ignore_unknown_options": True,
                "allow_interspersed_args": False,
            },
        )(_pass_on(_name, _command))


def single(function: Callable[..., None]) -> typer.Typer:
    """The Typer application of a module that is one command."""
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    one.command()(function)
    return one


def run(
    service: str,
    work: Callable[[Settings], Coroutine[Any, Any, int | None]],
    *,
    data: Path | None = None,
    of_running_city: bool = True,
    **changes: Any,
) -> None:
    """Load the settings, start logging, run until done or until SIGINT or SIGTERM; exit 0 done, 1 failed, 2 usage.

    of_running_city: see `Settings.load`. changes: settings that the command line gave; None is not given.
    """
    try:
        settings = Settings.load(data=data, of_running_city=of_running_city)
        settings = settings.replaced(**{k: v for k, v in changes.items() if v is not None})
        start_logging(settings.log_level, service=service)
        with asyncio.Runner(loop_factory=_fast_loop()) as runner:
            code = runner.run(_until_stopped(work(settings)))
    except ConfigurationError as error:
        typer.echo(f"citylab {service}: {error}", err=True)
        raise typer.Exit(2) from None
    except CitylabError as error:
        typer.echo(f"citylab {service}: {error}", err=True)
        raise typer.Exit(1) from None
    except BaseExceptionGroup as group:
        raise _one_of(service, group) from None
    raise typer.Exit(code or 0)


def _one_of(service: str, group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What several tasks raised, as one exit: ours are sentences, anything else is a defect and keeps its trace."""
    ours, others = group.split(CitylabError)
    if others is not None or ours is None:
        return group
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    typer.echo(f"citylab {service}: {first}", err=True)
    return typer.Exit(2 if isinstance(first, ConfigurationError) else 1)


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where the platform has brought it."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    return cast("Callable[[], asyncio.AbstractEventLoop]", importlib.import_module("uvloop").new_event_loop)


async def _until_stopped(work: Coroutine[Any, Any, int | None]) -> int | None:
    """Run to the end; cancel at SIGINT or SIGTERM, wait until everything is put away, and return None."""
    task = asyncio.ensure_future(work)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        if stopped:
            return None
        raise


def main() -> None:
    """The console script `citylab`."""
    try:
        app()
    except BrokenPipeError:  # `citylab ... | head`
        sys.exit(1)
