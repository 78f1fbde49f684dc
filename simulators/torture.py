"""`citylab torture`: prove that nothing an outbox has committed is lost, doubled or altered, whatever is killed or cut."""

import secrets
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from citylab.cli import run, single
from citylab.settings import Settings
from simulators.torture_plan import BROKEN_AT, Broken
from simulators.torture_run import Options, Outcome, run_once


async def torture_runs(settings: Settings, options: Options, seed: int, runs: int, as_json: bool) -> int:
    """Make the runs, with one seed after the other, and print; return 1 if one of them failed."""
    console = Console(stderr=True, highlight=False)
    outcomes = []
    for number in range(runs):
        console.print(f"run {number + 1} of {runs}: seed {seed + number}, {options.seconds:g} s of data")
        outcomes.append(await run_once(settings, options, seed + number, console.print))
        if not as_json:
            _show(outcomes[-1])
    passed = all(outcome.passed for outcome in outcomes)
    if as_json:
        typer.echo(msgspec.json.encode({"passed": passed, "runs": outcomes}).decode())
    return 0 if passed else 1


def _show(outcome: Outcome) -> None:
    found = outcome.difference
    table = Table(title=f"seed {outcome.seed}: {'passed' if outcome.passed else 'FAILED'}", show_header=False)
    for name, shown in (
        ("readings sent, in packs", f"{outcome.readings:,} in {outcome.packs:,}"),
        ("lost / doubled / altered", f"{found.lost} / {found.doubled} / {found.altered}"),
        ("aggregates and newest values wrong", f"{found.derived}"),
        ("ledger rows wrong", f"{found.ledger}"),
        ("records that came more than once", f"{outcome.repeated:,}"),
        ("longest time without progress", f"{outcome.outage:.1f} s"),
        ("from the last fault to the last row", f"{outcome.recovery:.1f} s"),
        ("faults", "\n".join(f"{count:4} {name}" for name, count in outcome.struck.items())),
        ("kill points hit", "\n".join(f"{count:4} {name}" for name, count in outcome.kill_points.items())),
        ("kill points not hit", ", ".join(outcome.not_hit)),
        ("left out here", "\n".join(outcome.left_out)),
        ("why it failed", "\n".join([*outcome.failures, *found.examples])),
    ):
        if shown:
            table.add_row(name, shown)
    Console(width=140, highlight=False).print(table)


def torture(
    seed: Annotated[
        int | None, typer.Option(help="Repeats a run's plan of faults; drawn when it is not given.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="How many, each with the seed after the one before.")] = 1,
    seconds: Annotated[
        float,
        typer.Option(min=5, max=3_600, help="How long data flows; longer until all kill points are hit."),
    ] = 30.0,
    gateways: Annotated[
        int, typer.Option(min=1, max=50, help="How many, each a process with an outbox on disk.")
    ] = 4,
    rate: Annotated[
        float, typer.Option(min=10, max=20_000, help="Readings a second, of all gateways together.")
    ] = 1_000.0,
    broken: Annotated[
        str,
        typer.Option(
            metavar="|".join(BROKEN_AT), help="Run a build that is wrong on purpose: it has to be caught."
        ),
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Kill, pause, cut, slow down and fill what a city consists of while data flows; then compare the store with the truth.

    In a city of its own: on embedded engines, or on real ones where CITYLAB_*_URL name such: then on a Mosquitto, Kafka and
    TimescaleDB of its own where deploy/engines.py has installed them, else on those named, with topics and a database of its
    own. Ends with 1 unless nothing was lost, doubled or altered, faults struck and every kill point was hit.
    """
    if broken and broken not in BROKEN_AT:
        raise typer.BadParameter(f"{broken!r} is none of {', '.join(BROKEN_AT)}", param_hint="--broken")
    options = Options(seconds, gateways, rate, msgspec.convert(broken, Broken))
    first = secrets.randbelow(10**6) if seed is None else seed
    run("torture", lambda settings: torture_runs(settings, options, first, runs, json), of_running_city=False)


app = single(torture)
