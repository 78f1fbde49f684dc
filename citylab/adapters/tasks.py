"""Tasks (OGC 17-079): held against their TaskingCapability, and made commands where a gateway carries them out."""

from typing import Any, NamedTuple

import msgspec

from citylab.drafts import Draft
from citylab.errors import Rejected
from citylab.model import Micros, Reason
from citylab.ports import Transaction
from citylab.tasking_parameters import check_values
from citylab.times import format_instant


class _Capability(NamedTuple):
    """A TaskingCapability, and the gateway of its Thing, if it has one."""

    id: int
    record: str
    name: str
    key: str | None
    gateway: str | None


class Command(NamedTuple):
    """What a gateway is told, but for the Task's id."""

    capability: _Capability
    parameters: str
    creation_time: str


async def begin(
    transaction: Transaction, draft: Draft, capability: int, *, now: Micros
) -> tuple[Command | None, dict[str, Any]]:
    """Check a Task that is to be created; return the command that it becomes, if any, and its kept columns.

    Raises `Rejected` where its parameters are not what its capability, which exists, describes.
    """
    known = await _capability(transaction, capability)
    parameters = draft.values["taskingParameters"]
    assert isinstance(parameters, str)
    _check(known, parameters)
    created = format_instant(now)
    if known.gateway is None:
        return None, {"creation_time": created}
    kept = {"creation_time": created, "status": "pending", "gateway": known.gateway}
    return Command(known, parameters, created), kept


async def send(transaction: Transaction, task: int, command: Command) -> None:
    """Have the command of a Task appended to the log once the transaction is committed."""
    capability = command.capability
    identity = {"@iot.id": capability.id, "name": capability.name}
    if capability.key is not None:
        identity["key"] = capability.key
    message = msgspec.json.encode(
        {
            "task": task,
            "capability": identity,
            "taskingParameters": msgspec.Raw(command.parameters.encode()),
            "creationTime": command.creation_time,
        }
    )
    await transaction.execute(
        "INSERT INTO commands (task_id, gateway, message, made_at) VALUES (%s, %s, %s, %s)",
        (task, capability.gateway, message, command.creation_time),
    )
    await transaction.execute("NOTIFY citylab_commands")


async def check_change(transaction: Transaction, task: int, changes: Draft) -> None:
    """Raise `Rejected` where a change would leave a Task with other parameters than its capability describes.

    What was sent to a gateway stays as it was sent.
    """
    if "taskingParameters" not in changes.values and "TaskingCapability" not in changes.links:
        return
    ((parameters, capability, gateway),) = await transaction.fetch(
        "SELECT tasking_parameters::text, tasking_capability_id, gateway FROM tasks WHERE id = %s FOR UPDATE",
        (task,),
    )
    if gateway is not None:
        raise Rejected(
            Reason.CONFLICT, f"Tasks({task}) was sent to the gateway {gateway} as it is: create another one"
        )
    given = changes.values.get("taskingParameters", parameters)
    (other,) = changes.links.get("TaskingCapability", [capability])
    assert isinstance(given, str)
    assert isinstance(other, int)
    _check(await _capability(transaction, other), given)


def _check(capability: _Capability, parameters: str) -> None:
    try:
        check_values(capability.record, parameters)
    except ValueError as error:
        raise Rejected(Reason.MALFORMED, f"taskingParameters: {error}") from None


async def _capability(transaction: Transaction, own: int) -> _Capability:
    rows = await transaction.fetch(
        "SELECT c.id, c.tasking_parameters::text, c.name, c.properties ->> 'key', t.gateway"
        " FROM tasking_capabilities c JOIN things t ON t.id = c.thing_id WHERE c.id = %s",
        (own,),
    )
    if not rows:
        raise Rejected(Reason.MALFORMED, f"TaskingCapabilities({own}) does not exist")
    return _Capability(*rows[0])
