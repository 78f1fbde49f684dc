"""What the bridge is to publish, as the event log's `citylab.outbound` carries it."""

from citylab.model import Event, Micros, NewEvent

LARGEST = 256 * 1024
"""Bytes of the largest payload that is published: a broker may disconnect who publishes a larger one."""
GROUP = "bridges"
"""The log's consumer group whose place says how far the topic is published."""


def outbound(
    topic: str,
    payload: bytes,
    *,
    now: Micros,
    gateway: str = "",
    qos: int = 1,
    retain: bool = False,
    expires_at: Micros | None = None,
) -> NewEvent:
    """The event by which a bridge publishes a message, at least once, in the order of the log.

    payload: at most `LARGEST` bytes; gateway: whom it is for, if it is for one. What has not been published at `expires_at` is dropped; None keeps it as
    long as the log does.
    """
    headers = {"topic": topic, "qos": str(qos), "retain": str(int(retain))}
    if expires_at is not None:
        headers["expires-at"] = str(expires_at)
    return NewEvent(gateway or topic, payload, headers, now)


def is_due(event: Event, now: Micros) -> bool:
    """Whether what an event carries is still to be published."""
    return now < int(event.headers.get("expires-at", now + 1))
