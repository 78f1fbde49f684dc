"""`citylab rejections`: what was refused and why, and having it taken up again."""

from typing import Annotated

import typer

from citylab import wiring
from citylab.cli import Data, run
from citylab.errors import ConfigurationError
from citylab.ledger_command import AsJson, Gateway, NoSuchThing, instant, print_json, print_table
from citylab.model import Reason
from citylab.rejections import Payload, Rejection, Replay, Selection, find, payload_of, replay_selection
from citylab.settings import Settings

_DETAIL = 80  # characters of a detail in a table

app = typer.Typer(
    help="What was refused and why; have it taken up again once the cause is mended.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="REASON", help=f"For this reason: {', '.join(Reason)}.")
]
Stream = Annotated[str | None, typer.Option(metavar="NAME", help="Of this stream, by its name.")]


@app.callback()
def rejections() -> None:
    """What was refused and why; have it taken up again once the cause is mended."""


@app.command("list")
def list_rejections(
    *,
    data: Data = None,
    gateway: Gateway = None,
    reason: ReasonOption = None,
    stream: Stream = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that were taken up since.")] = False,
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Received from here on.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Received before this.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="So many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the open rejections, the newest first."""

    async def work(settings: Settings) -> None:
        selection = Selection(
            gateway=gateway, reason=_reason(reason), stream=stream, open=None if every else True,
            start=None if start is None else instant(start, 0), end=None if end is None else instant(end, 0),
        )  # fmt: skip
        async with (
            wiring.store(settings, name="rejections") as store,
            store.transaction(read_only=True) as transaction,
        ):
            found = await find(transaction, selection, most=limit)
        if as_json:
            print_json(found)
        elif found:
            print_table("rejections", ("id", "received", "gateway", "pack", "record", "stream", "reason", "detail"), [
                (
                    str(r.id), r.received[:19], r.gateway, f"{r.epoch}/{r.seq}" if r.epoch else "", _record(r), r.stream,
                    r.reason if r.closed is None else f"{r.reason} (taken up)", r.detail[:_DETAIL],
                )
                for r in found
            ])  # fmt: skip
            if len(found) == limit:
                typer.echo(f"The newest {limit:,}; --limit shows more.")
        else:
            typer.echo("There are no such rejections.")

    run("rejections list", work, data=data)


@app.command("show")
def show_rejection(
    one: Annotated[int, typer.Argument(metavar="ID", min=1, help="As `citylab rejections list` shows it.")],
    *,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Show a rejection, with the record or the bytes of a pack that was refused whole. Exit code 1 when there is none."""

    async def work(settings: Settings) -> None:
        async with (
            wiring.store(settings, name="rejections") as store,
            store.transaction(read_only=True) as transaction,
        ):
            found = await find(transaction, Selection(ids=[one]), most=1)
            payload = await payload_of(transaction, one)
        if not found:
            raise NoSuchThing(
                f"there is no rejection {one}: citylab rejections list shows those that are open"
            )
        document = {name: getattr(found[0], name) for name in Rejection.__struct_fields__}
        if as_json:
            print_json(document | {"payload": payload})
            return
        for name, value in document.items():
            typer.echo(f"{name:14}{'' if value is None else value}")
        if payload is not None:
            typer.echo(f"{'payload':14}{_shown(payload)}")

    run("rejections show", work, data=data)


@app.command("replay")
def replay_rejections(
    ids: Annotated[
        list[int] | None, typer.Argument(metavar="ID...", help="These.", show_default=False)
    ] = None,
    *,
    data: Data = None,
    gateway: Gateway = None,
    reason: ReasonOption = None,
    stream: Stream = None,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long to wait for the end.")
    ] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Take open rejections up again: those with these ids, or all of a gateway, a reason or a stream.

    Mend the cause first: register the stream, correct the unit or the type of its Datastream, raise a limit. Each is taken up
    in one transaction by `citylab processing`, which must run. Nothing comes in twice, and what is still wrong stays a
    rejection with what is wrong now.

    Exit code 1 when something remains rejected or still waits.
    """  # fmt: skip

    async def work(settings: Settings) -> int:
        selection = Selection(ids=ids or None, gateway=gateway, reason=_reason(reason), stream=stream)
        if selection == Selection():
            raise ConfigurationError("say what is to be taken up: ids, --gateway, --reason or --stream")
        async with wiring.store(settings, name="rejections") as store:
            outcome = await replay_selection(store, selection, patience=wait)
        if as_json:
            print_json(outcome)
        else:
            _tell(outcome)
        return 1 if outcome.waiting or outcome.rejected else 0

    run("rejections replay", work, data=data)


def _tell(outcome: Replay) -> None:
    typer.echo(
        f"{outcome.asked:,} rejections: {outcome.stored:,} records stored, {outcome.duplicates:,} were stored already,"
        f" {sum(outcome.rejected.values()):,} are still rejected"
    )
    for reason, count in sorted(outcome.rejected.items()):
        typer.echo(f"  {count:,} {reason} (citylab rejections list --reason {reason})")
    if outcome.waiting:
        typer.echo(
            f"  {outcome.waiting:,} still wait: is `citylab processing` running? They are taken up when it is."
        )


def _reason(reason: str | None) -> str | None:
    if reason is not None and reason not in set(Reason):
        raise ConfigurationError(f"--reason {reason}: it is none of {', '.join(Reason)}")
    return reason


def _record(rejection: Rejection) -> str:
    return "all" if rejection.record < 0 else str(rejection.record)


def _shown(payload: Payload) -> str:
    return payload.text if payload.text is not None else f"base64 {payload.base64}"
