"""What a Task becomes on its way to a gateway and back: a command, and results. Known to both ends; needs msgspec alone."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

State: TypeAlias = Literal["accepted", "running", "completed", "failed", "rejected"]
"""What a gateway says of a Task, in this order; the last three are final, and each is said once."""

FINAL = ("completed", "failed", "rejected")
TaskId = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


class Command(msgspec.Struct, frozen=True):
    """A Task as its gateway gets it. capability: its TaskingCapability's `@iot.id`, `name` and, if it has one, `key`."""

    task: TaskId
    capability: dict[str, Any]
    taskingParameters: dict[str, Any]  # noqa: N815 -- as SensorThings spells it
    creationTime: str  # noqa: N815


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a gateway says of a Task. at: ISO 8601, or seconds since 1970; result: any JSON, kept as it is written."""

    task: TaskId
    state: State
    at: str | float | None = None
    message: str | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
