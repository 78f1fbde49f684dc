"""Tasks of gateways: their commands on the way out, and the gateways' results on the way back."""

from typing import Any

import msgspec

from citylab.commands import FINAL, Result
from citylab.drafts import holds_nul
from citylab.errors import Rejected
from citylab.model import SECOND, Micros, Reason, Topic
from citylab.outbound import outbound
from citylab.ports import EventLog, Store, Transaction
from citylab.times import format_instant, parse_instant

_BEFORE = {"accepted": ["pending"], "running": ["pending", "accepted"]}  # a final one comes after all three
_UNFINISHED = ["pending", "accepted", "running"]
_AT_ONCE = 100  # commands in one transaction


def read_result(payload: bytes, received_at: Micros) -> tuple[Result, str]:
    """Read what a gateway says of a Task, and what of it becomes the Task's runLog. Raises `Rejected("malformed")`."""
    try:
        payload.decode()
        result = msgspec.json.decode(payload, type=Result)
        run_log: dict[str, Any] = {"at": _instant(result.at, received_at)}
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise Rejected(Reason.MALFORMED, f"no result of a Task: {error}") from error
    if result.message is not None:
        run_log["message"] = result.message
    if result.result is not msgspec.UNSET:
        run_log["result"] = result.result
    text = msgspec.json.encode(run_log).decode()
    if holds_nul(text):
        raise Rejected(Reason.MALFORMED, "it holds the character NUL, which the store cannot keep")
    return result, text


def _instant(at: str | float | None, received_at: Micros) -> str:
    if at is None:
        return format_instant(received_at)
    if isinstance(at, str):
        return format_instant(parse_instant(at))
    if not 0 <= at < 1e11:
        raise ValueError(f"at is {at:g}; it counts seconds since 1970")
    return format_instant(round(at * SECOND))


async def keep_result(transaction: Transaction, gateway: str, payload: bytes, received_at: Micros) -> None:
    """Write a result onto its Task; one that comes late or again changes nothing.

    Raises `Rejected`: malformed, or not-yours where the Task was not sent to this gateway.
    """
    result, run_log = read_result(payload, received_at)
    changed = await transaction.execute(
        "UPDATE tasks SET status = %s, run_log = %s::jsonb WHERE id = %s AND gateway = %s AND status = ANY(%s)",
        (result.state, run_log, result.task, gateway, _BEFORE.get(result.state, _UNFINISHED)),
    )
    if not changed and not await transaction.fetch(
        "SELECT FROM tasks WHERE id = %s AND gateway = %s", (result.task, gateway)
    ):
        raise Rejected(Reason.NOT_YOURS, f"Tasks({result.task}) was not sent to {gateway}, or is deleted")
    if result.state in FINAL:
        await transaction.execute("DELETE FROM commands WHERE task_id = %s", (result.task,))


async def send_again(transaction: Transaction, gateway: str) -> None:
    """Send a gateway that says it is there what it has not finished: it may have been away when it was sent."""
    if await transaction.execute("UPDATE commands SET due = true WHERE gateway = %s AND NOT due", (gateway,)):
        await transaction.execute("NOTIFY citylab_commands")


async def send_due(store: Store, event_log: EventLog, *, now: Micros, lifetime: Micros) -> None:
    """Append the commands that are due to the log, at least once each; let those expire that are older than `lifetime`.

    Raises `Unavailable`.
    """
    oldest = format_instant(now - lifetime)
    while True:
        async with store.transaction() as transaction:
            await transaction.execute(
                "UPDATE tasks t SET status = 'expired', run_log = jsonb_build_object('at', %s::text)"
                " FROM commands c WHERE c.task_id = t.id AND c.made_at <= %s AND t.status = 'pending'",
                (format_instant(now), oldest),
            )
            await transaction.execute("DELETE FROM commands WHERE made_at <= %s", (oldest,))
            rows = await transaction.fetch(
                "SELECT task_id, gateway, message, (extract(epoch FROM made_at) * 1000000)::bigint FROM commands"
                " WHERE due ORDER BY task_id LIMIT %s FOR UPDATE SKIP LOCKED",
                (_AT_ONCE,),
            )
            if not rows:
                return
            events = [
                outbound(
                    f"citylab/v1/gateways/{gateway}/commands",
                    bytes(message),
                    now=now,
                    gateway=gateway,
                    expires_at=made_at + lifetime,
                )
                for _, gateway, message, made_at in rows
            ]
            await event_log.append(Topic.OUTBOUND, events)
            await transaction.execute(
                "UPDATE commands SET due = false WHERE task_id = ANY(%s)", ([row[0] for row in rows],)
            )
