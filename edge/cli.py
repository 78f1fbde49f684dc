"""`citylab edge`: a gateway as a process."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import structlog
import typer

from citylab import wiring
from citylab.cli import Data, run, single
from citylab.errors import ConfigurationError
from citylab.model import GATEWAY_NAME
from citylab.settings import Settings
from edge.agent import Agent, AgentSettings
from edge.feed import Packing
from edge.json_lines import JsonLines, load_things
from edge.outbox import MOST_BYTES, Outbox, Priority
from edge.packing import Form

log = structlog.get_logger(__name__)

WAITING_FOR_A_REPLAY = 2_000  # packs in the outbox beyond which a file, which can wait, is not read on


async def serve(
    settings: Settings,
    *,
    gateway: str,
    descriptor: Path,
    readings: Path | None,
    program: Sequence[str],
    folder: Path | None,
    form: Form,
    most_bytes: int,
    priority: Priority | None,
) -> None:
    """Run the gateway until its readings end and are acknowledged, or until cancelled."""
    if not GATEWAY_NAME.fullmatch(gateway):  # before it names a folder
        raise ConfigurationError(
            f"{gateway!r} is no gateway's name: 1 to 64 ASCII letters, digits and - _ . :"
        )
    driver = JsonLines(load_things(descriptor), readings, program=program)
    packing = Packing(
        form=form, most_pending=WAITING_FOR_A_REPLAY if driver.finite else None, priority=priority
    )
    outbox = Outbox(folder or settings.data / "edge" / gateway, most_bytes=most_bytes)
    connect = partial(wiring.broker_connection, settings)
    agent = Agent(gateway, driver, outbox, connect, settings=AgentSettings(packing=packing))
    await agent.run()
    log.info("all readings are acknowledged", gateway=gateway, packs=outbox.last)


def edge(
    gateway: Annotated[
        str, typer.Option("--gateway", metavar="NAME", help="This gateway's name, its MQTT client id.")
    ],
    descriptor: Annotated[
        Path,
        typer.Option("--descriptor", metavar="FILE", help="What it measures: SensorThings Things in JSON."),
    ],
    readings: Annotated[
        str,
        typer.Option("--readings", metavar="FILE", help="A file or FIFO of readings; - is standard input."),
    ] = "-",
    program: Annotated[
        str,
        typer.Option(
            "--program",
            metavar="COMMAND",
            help="A program to run: it prints readings, and gets commands as lines.",
        ),
    ] = "",
    outbox: Annotated[
        Path | None,
        typer.Option(
            "--outbox", metavar="DIR", help="Where packs wait. Default: edge/NAME in the city's folder."
        ),
    ] = None,
    outbox_mib: Annotated[
        float,
        typer.Option(
            "--outbox-mib",
            min=0.0625,
            help="MiB of packs that it keeps. When it is full the oldest go, backlog first.",
        ),
    ] = MOST_BYTES / (1 << 20),
    priority: Annotated[
        str,
        typer.Option(
            "--priority",
            metavar="live|backlog|age",
            help="What is sent first and given up last: live. By age, what is older than 15 minutes is backlog.",
        ),
    ] = "age",
    form: Annotated[str, typer.Option("--form", metavar="json|cbor", help="How packs are written.")] = "json",
    data: Data = None,
) -> None:
    r"""Run a gateway: readings go into an outbox on disk, and from there to the platform until it has them.

    Any program that prints a reading a line is a driver:

        ./my-sensor.py | citylab edge --gateway lamp-7 --descriptor lamp-7.json

    A line is {"n": "lamp-7/no2", "v": 21.4}, with "u" for its unit, "t" for its time (seconds since 1970 or ISO 8601;
    now without it) and "quality" (good, suspect, bad) where there is one. n is a Datastream's properties.streamName.
    With --program './my-lamp.py' it also gets the Tasks of its Things, as lines on its standard input
    ({"task": 7, "taskingParameters": {"level": 40}, ...}), and answers each: {"task": 7, "state": "completed"}.
    The broker is CITYLAB_BROKER_URL, else that of a city running on this machine. It may be away: readings wait on disk.
    """
    if program and readings != "-":
        raise typer.BadParameter("readings come from --program or from --readings", param_hint="--program")
    if form not in {"json", "cbor"}:
        raise typer.BadParameter(f"{form!r} is neither json nor cbor", param_hint="--form")
    if priority not in {"live", "backlog", "age"}:
        raise typer.BadParameter(f"{priority!r} is neither live, backlog nor age", param_hint="--priority")
    work = partial(
        serve,
        gateway=gateway,
        descriptor=descriptor,
        readings=None if readings == "-" else Path(readings),
        program=shlex.split(program),
        folder=outbox,
        form="cbor" if form == "cbor" else "json",
        most_bytes=round(outbox_mib * (1 << 20)),
        priority=None if priority == "age" else Priority[priority.upper()],
    )
    run("edge", work, data=data)


app = single(edge)
