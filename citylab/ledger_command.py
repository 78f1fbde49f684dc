"""`citylab ledger`: what came of each gateway, and what is missing, since when and why; or of a stream."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from citylab import wiring
from citylab.cli import Data, run, single
from citylab.errors import CitylabError, ConfigurationError
from citylab.ledger import WHY, Delay, LedgerEntry, StreamAccount, entries, parse_width, stream_account
from citylab.model import DAY, Micros
from citylab.ports import Store
from citylab.settings import Settings
from citylab.times import now, parse_instant

MOST_WINDOWS = 10_000
_HOLES = 20  # lines of an entry
_PAGE = 500
_WIDEST = 1_000  # characters: no cell is ever cut, a terminal wraps what is too wide for it

Gateway = Annotated[str | None, typer.Option(metavar="NAME", help="Of this gateway alone.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, as the API answers.")]


class NoSuchThing(CitylabError):
    """There is nothing by this name."""


def instant(text: str | None, usual: Micros) -> Micros:
    """An instant of the command line. Raises `ConfigurationError`."""
    try:
        return usual if text is None else parse_instant(text)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def print_table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: int = 0
) -> None:
    """A table as wide as it needs; the last `numbers` columns are numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for i, name in enumerate(head):
        right = i >= len(head) - numbers
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(_cell, row))
    Console(highlight=False, width=_WIDEST).print(table)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def print_json(document: object) -> None:
    """The document, for a program."""
    typer.echo(msgspec.json.format(msgspec.json.encode(document)).decode())


def ledger(
    *,
    data: Data = None,
    gateway: Gateway = None,
    datastream: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A Datastream instead, by its stream name, its id or its name: its holes in time.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="TIME", help="Of the Datastream from here on. Default: a day before --to."
        ),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Of the Datastream before this. Default: now.")
    ] = None,
    width: Annotated[
        str,
        typer.Option(
            metavar="WIDTH",
            help="Of the Datastream's windows: minute, hour, day, or a duration such as PT15M.",
        ),
    ] = "hour",
    as_json: AsJson = False,
) -> None:
    """Show what came of each gateway and what is missing, since when and why.

    Packs are numbered at the gateway, so that a hole shows. Of a number that has not come, *pending* means that the gateway
    still has the pack, *gone* that it had to drop it because its outbox was full, *missing* that it has neither and the
    pack has not come, and *unsettled* that the gateway has not said anything of it since. `records` is always
    `stored` + `duplicates` + `rejected`; `citylab rejections list` shows what was rejected.

    With --datastream: what came of a stream against its declared interval, and its holes in time.

    Exit code 1 when there is no such gateway or Datastream.
    """  # fmt: skip

    async def work(settings: Settings) -> None:
        async with wiring.store(settings, name="ledger") as store:
            if datastream is None:
                if start is not None or end is not None:
                    raise ConfigurationError("--from and --to go with --datastream")
                await _gateways(store, gateway, as_json=as_json)
                return
            if gateway is not None:
                raise ConfigurationError("--gateway and --datastream are two questions: ask one")
            moment = now()
            until = instant(end, moment)
            since = instant(start, until - DAY)
            if since >= until:
                raise ConfigurationError("--from must be before --to")
            account = await _stream(store, datastream, since, until, width, moment)
        if as_json:
            print_json(account)
        else:
            _show_stream(account)

    run("ledger", work, data=data)


async def _gateways(store: Store, gateway: str | None, *, as_json: bool) -> None:
    found: list[LedgerEntry] = []
    async with store.transaction(read_only=True) as transaction:
        after = ("", -1)
        while page := await entries(transaction, gateway=gateway, after=after, most=_PAGE):
            found += page
            after = page[-1].gateway, page[-1].epoch
    if gateway is not None and not found:
        raise NoSuchThing(f"no gateway {gateway!r} has sent a pack; citylab ledger lists those that have")
    if as_json:
        print_json(found)
        return
    if not found:
        typer.echo("No gateway has sent a pack yet.")
        return
    if gateway is None:
        print_table(
            "ledger",
            (
                "gateway", "epoch", "last received", "packs", "missing", "pending", "gone", "unsettled", "stored",
                "duplicates", "rejected", "p99 ms",
            ),
            [
                (
                    e.gateway, str(e.epoch or ""), (e.last_received or "")[:19], e.packs, e.missing, e.pending, e.gone,
                    e.unsettled, e.stored, e.duplicates, e.rejected, _rounded(e.delay_since_receipt.p99_ms),
                )
                for e in found
            ],
            numbers=9,
        )  # fmt: skip
    for entry in found if gateway is not None else ():
        for name, value in _in_full(entry):
            typer.echo(f"{name:32}{_cell(value)}")
        typer.echo("")
    for line in (line for entry in found for line in _explained(entry)):
        typer.echo(line)


def _rounded(ms: float | None) -> int | None:
    return None if ms is None else round(ms)


def _in_full(entry: LedgerEntry) -> Iterator[tuple[str, int | str | None]]:
    """What an entry says in a line each, by its names in JSON; holes and reasons follow as sentences."""
    for name in LedgerEntry.__struct_fields__:
        value = getattr(entry, name)
        if isinstance(value, Delay):
            yield f"{name} p50 ms", _rounded(value.p50_ms)
            yield f"{name} p99 ms", _rounded(value.p99_ms)
        elif not isinstance(value, (list, dict)) and name != "holes_left_out":
            yield name, str(value) if name == "epoch" else value


def _explained(entry: LedgerEntry) -> Iterator[str]:
    for hole in entry.holes[:_HOLES]:
        numbers = f"{hole.first}" if hole.first == hole.last else f"{hole.first} to {hole.last}"
        since = f", passed at {hole.since}" if hole.since else ""
        yield f"{entry.gateway}, epoch {entry.epoch}: {numbers} {hole.state}{since}: {WHY[hole.state]}"
    if (more := entry.holes_left_out + max(len(entry.holes) - _HOLES, 0)) > 0:
        yield f"{entry.gateway}, epoch {entry.epoch}: and {more:,} more holes (--json, or /ledger?gateway=...&holes=1000)"
    if entry.rejected_by_reason:
        reasons = ", ".join(
            f"{count:,} {reason}" for reason, count in sorted(entry.rejected_by_reason.items())
        )
        yield f"{entry.gateway}, epoch {entry.epoch}: rejected {reasons}"


async def _stream(
    store: Store, datastream: str, start: Micros, end: Micros, width: str, moment: Micros
) -> StreamAccount:
    try:
        micros = parse_width(width)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    if (end - start) // micros >= MOST_WINDOWS:
        raise ConfigurationError(
            f"more than {MOST_WINDOWS:,} windows: choose a wider --width, or a shorter time"
        )
    async with store.transaction(read_only=True) as transaction:
        # A name may be a number too: it goes before the id.
        for name in (datastream, int(datastream)) if datastream.isdecimal() else (datastream,):
            account = await stream_account(transaction, name, start=start, end=end, width=micros, now=moment)
            if account is not None:
                return account
    raise NoSuchThing(f"there is no Datastream {datastream!r}: give its stream name, its id or its name")


def _show_stream(account: StreamAccount) -> None:
    typer.echo(
        f"{account.name} (Datastream {account.datastream}), stream {account.stream}, gateway {account.gateway}"
    )
    share = "" if account.completeness is None else f", {account.completeness:.1%}"
    of = (
        "its interval is not declared, so nothing is expected"
        if account.expected is None
        else f"{account.expected:,} expected at one a {account.interval}{share}"
    )
    typer.echo(f"{account.start} to {account.end}: {account.received:,} received; {of}")
    print_table(
        "windows", ("start", "received", "expected"), [(w.start, w.received, w.expected) for w in account.windows], numbers=2
    )  # fmt: skip
    for hole in account.holes[:_HOLES]:
        typer.echo(f"no value from {hole.start} to {hole.end}: {hole.lost:,} are not there")
    if (more := account.holes_left_out + max(len(account.holes) - _HOLES, 0)) > 0:
        typer.echo(f"and {more:,} more holes")
    for reason, count in account.rejected_by_reason.items():
        typer.echo(f"{count:,} rejected as {reason} (citylab rejections list --stream {account.stream})")
    if account.gateway and account.holes:
        typer.echo(f"What its gateway's packs lack: citylab ledger --gateway {account.gateway}")


app = single(ledger)
