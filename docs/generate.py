"""Writes docs/reference/ from the code: `make references`. A test fails when a page is not what this would write."""

import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import typer.main
from prometheus_client.metrics_core import Metric

from api.health import Check, Health, _Figures
from api.sensorthings.errors import status_of
from citylab import errors
from citylab.archive_watch import Archived
from citylab.cli import COMMANDS
from citylab.errors import CitylabError, ConfigurationError, PositionLost, Rejected, TimedOut, Unavailable
from citylab.model import Kept, Reason, Topic
from citylab.settings import FOREIGN, FOREIGN_PREFIXES, PREFIX, Settings, is_secret

REFERENCE = Path(__file__).parent / "reference"
_WRITTEN = "<!-- Written by docs/generate.py (make references). Change the code, not this page. -->"

# What a person needs to know of a reason beyond its name. A new one without a line here fails the generator.
REASONS = {
    Reason.MALFORMED: (
        "The pack is no SenML, or the descriptor, status or result is no JSON object as it should be",
        "Mend what the device sends. The detail names the record and the rule.",
    ),
    Reason.UNKNOWN_STREAM: (
        "No Datastream has this stream name",
        "Publish a descriptor that lists it: the record is then taken up by itself.",
    ),
    Reason.NOT_YOURS: (
        "The Thing, the stream or the Task belongs to another gateway",
        "Choose another name, or list the gateway in the Thing's `properties.gateways`.",
    ),
    Reason.TYPE_MISMATCH: (
        "The Datastream's `observationType` takes no such value",
        "Send a value of that type, or declare another type.",
    ),
    Reason.NOT_FINITE: ("NaN or infinity", "Leave a reading out that is none: a hole is honest."),
    Reason.UNIT_MISMATCH: (
        "`u` is neither the Datastream's `properties.senmlUnit` nor its `unitOfMeasurement.symbol`",
        "Send the declared unit, or none.",
    ),
    Reason.TIME_IN_FUTURE: (
        "Later than `CITYLAB_FUTURE_SECONDS` after its receipt",
        "Set the device's clock.",
    ),
    Reason.TIME_IMPLAUSIBLE: ("Before `CITYLAB_EARLIEST`", "Set the device's clock."),
    Reason.CONFLICT: (
        "Another value is stored for this Datastream and time; the first stands",
        "Look for two devices that use one stream name, or a clock that was set back.",
    ),
    Reason.OVER_QUOTA: (
        "A pack without number beyond its gateway's quota",
        "Not given yet: quotas come with pilots.",
    ),
}
EXAMPLES: Sequence[tuple[CitylabError, str]] = (
    (ConfigurationError(""), "2"),
    (Unavailable("", ""), "1"),
    (TimedOut("", ""), "1"),
    (PositionLost("", 0, ""), "1"),
    (Rejected(Reason.MALFORMED, ""), "1"),
)


def pages() -> dict[str, str]:
    """The pages by file name."""
    return {
        "settings.md": "\n".join(_settings()) + "\n",
        "commands.md": "\n".join(_commands()) + "\n",
        "errors.md": "\n".join(_errors()) + "\n",
        "metrics.md": "\n".join(_metrics()) + "\n",
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _settings() -> Iterator[str]:
    yield from (
        "# Settings",
        "",
        _WRITTEN,
        "",
        "Environment over a file `.env` in the current folder, over the addresses that a running `citylab up` has written",
        "into its folder, over the defaults. An unknown `CITYLAB_*` variable is refused, with the nearest known name.",
        "`citylab doctor` shows what is in force, without its secrets.",
        "",
    )
    hints = get_type_hints(Settings, include_extras=True)
    fields = msgspec.structs.fields(Settings)
    yield from _table(
        ("variable", "default", "value", "what it is"),
        (
            (f"`{PREFIX}{f.name.upper()}`", _default(f.default), _value(hints[f.name]), _about(hints[f.name], f.name))
            for f in fields
        ),
    )  # fmt: skip
    yield ""
    names = ", ".join(f"`{name}`" for name in (*FOREIGN, *(f"{p}*" for p in FOREIGN_PREFIXES)))
    yield f"Known, but read by the tests and the compose file only: {names}."


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return "`1`" if value else "`0`"
    return f"`{value}`" if str(value) else "none"


def _metas(hint: Any) -> list[msgspec.Meta]:
    return [meta for meta in get_args(hint)[1:] if isinstance(meta, msgspec.Meta)]


def _about(hint: Any, name: str) -> str:
    text = next(meta.description for meta in _metas(hint) if meta.description)
    return f"{text} A secret." if is_secret(name) else text


def _value(hint: Any) -> str:
    kind: Any = get_args(hint)[0]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    words = {Path: "a folder", str: "text", int: "a whole number", float: "a number", bool: "`0` or `1`"}
    limits = []
    for meta in _metas(hint):
        if meta.ge is not None and meta.le is not None:
            limits.append(f"{meta.ge:,} to {meta.le:,}")
        elif meta.ge is not None:
            limits.append(f"at least {meta.ge:,}")
        elif meta.gt is not None:
            limits.append(f"above {meta.gt:,}" + (f", at most {meta.le:,}" if meta.le is not None else ""))
        if meta.pattern:
            limits.append(f"`{meta.pattern}`")
    return ", ".join([words[kind], *limits])


def _commands() -> Iterator[str]:
    yield from (
        "# Commands",
        "",
        _WRITTEN,
        "",
        "Exit codes: 0 done, 1 failed, 2 wrong usage or settings. SIGINT and SIGTERM end a command in order, with 0.",
        "",
    )
    yield from _table(("command", "what it does", "comes with"), (
        (f"[`citylab {name}`](#citylab-{name})", command.about, f"`citylab[{command.extra}]`")
        for name, command in COMMANDS.items()
    ))  # fmt: skip
    for name, command in COMMANDS.items():
        top: Any = typer.main.get_command(importlib.import_module(command.module).app)
        yield from _command(top, f"citylab {name}", "##")
        for sub_name, sub in getattr(top, "commands", {}).items():
            yield from _command(sub, f"citylab {name} {sub_name}", "###")


def _command(command: Any, path: str, heading: str) -> Iterator[str]:
    context = command.make_context(path, [], resilient_parsing=True)
    yield from ("", f"{heading} {path}", "", inspect.cleandoc(command.help or ""))
    rows = []
    for p in command.params:
        if p.name == "help" or getattr(p, "hidden", False):
            continue
        named = "/".join((*p.opts, *p.secondary_opts)) if p.param_type_name == "option" else p.name.upper()
        flag = p.display_type(context) == "<bool>"
        kind = "" if flag else " " + (p.metavar or p.display_type(context).strip("<>"))
        rows.append(
            (f"`{named}{kind if p.param_type_name == 'option' else ''}`", _given(p, flag), p.help or "")
        )
    if rows:
        yield ""
        yield from _table(("option", "default", ""), rows)


def _given(parameter: Any, flag: bool) -> str:
    default = parameter.default
    if parameter.required:
        return "required"
    if flag:
        return "on" if default else "off"
    if default is None:
        return ""
    return f"`{' '.join(map(str, default)) if isinstance(default, (list, tuple)) else default}`"


def _errors() -> Iterator[str]:
    tree = inspect.cleandoc(CitylabError.__doc__ or "").partition("\n\n")[2]
    yield from (
        "# Errors and reasons",
        "",
        _WRITTEN,
        "",
        "## Why a record is rejected",
        "",
        "A rejected record is kept with its reason (`citylab rejections list`), and counted in the ledger and in",
        "`citylab_records_rejected_total`. The other records of its pack are stored. `citylab rejections replay` takes it up again.",
        "",
    )
    yield from _table(
        ("reason", "when", "what to do"), ((f"`{reason}`", *REASONS[reason]) for reason in Reason)
    )
    yield from (
        "",
        "## What the API answers",
        "",
        "Errors are JSON with `code` (the HTTP status), `type` and `message`. 400: the request is wrong, and the message says",
        "at which character. 404: there is nothing at that address. 501: legal in the standard, not done here. 503: an engine",
        "is away; `Retry-After` says when to ask again.",
        "",
        "## Errors in the code",
        "",
        "```text",
        *tree.splitlines(),
        "```",
        "",
    )
    yield from _table(
        ("error", "a command exits with", "the API answers", "what it means"),
        (
            (f"`{type(e).__name__}`", code, str(status_of(e)), _first_line(type(e)))
            for e, code in EXAMPLES
        ),
    )  # fmt: skip
    known = {e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, CitylabError)}
    assert known == {CitylabError, *(type(e) for e, _ in EXAMPLES)}, "an error is missing in EXAMPLES"


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").splitlines()[0]


def _metrics() -> Iterator[str]:
    yield from (
        "# Metrics",
        "",
        _WRITTEN,
        "",
        "`GET /metrics` answers in the Prometheus text format; `GET /health/ready` says the same of the city as a whole, in JSON:",
        "200 while the API can serve, `state` is `ready` or `unwell`, and each check says what is wrong. `GET /health/live`",
        "answers while the process does.",
        "",
    )
    families: list[Metric] = _Figures(
        Health(
            [Check("store", ok=True, detail="")],
            over_quota={"a": 0},
            kept={Topic.PACKS: Kept(0, 0)},
            archived=[Archived("a", active=True, lost=False, behind=0, silent=0.0)],
        ),
        [("a", 0, 0, 0, 0, 0, 0, 0)],
        [("a", 0)],
    ).collect()
    yield from _table(("metric", "type", "labels", "what it is"), (
        (
            f"`{metric.name}{'_total' if metric.type == 'counter' else ''}`",
            metric.type,
            ", ".join(f"`{label}`" for label in sorted(metric.samples[0].labels)),
            f"{metric.documentation}.",
        )
        for metric in families
    ))  # fmt: skip


def main() -> int:
    """Write the pages, saying which have changed."""
    REFERENCE.mkdir(exist_ok=True)
    for name, text in pages().items():
        file = REFERENCE / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            sys.stdout.write(f"docs/reference/{name}: written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
