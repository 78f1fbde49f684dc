"""What gateway and platform tell each other over MQTT besides packs (the contracts, MQTT)."""

from typing import Literal

import msgspec

PLATFORM = "citylab/v1/platform"


class Topics:
    """A gateway's topics."""

    def __init__(self, gateway: str) -> None:
        root = f"citylab/v1/gateways/{gateway}"
        self.packs = f"{root}/packs/numbered"
        self.acks = f"{root}/acks"
        self.resend = f"{root}/resend"
        self.descriptor = f"{root}/descriptor"
        self.status = f"{root}/status"
        self.commands = f"{root}/commands"
        self.results = f"{root}/results"


class Acks(msgspec.Struct, frozen=True):
    """These packs are in the log, a refused one among the rejections. slow_down_until: s since 1970."""

    epoch: int
    appended: list[tuple[int, int]] = []
    refused: dict[int, str] = {}
    slow_down_until: float | None = None


class Resend(msgspec.Struct, frozen=True):
    """The ledger misses these packs, though they may have been acknowledged."""

    epoch: int
    ranges: list[tuple[int, int]]


class Platform(msgspec.Struct, frozen=True):
    """A bridge has connected; another value than before means that one is back. since: s since 1970."""

    since: float


class OutboxState(msgspec.Struct, frozen=True):
    """The numbers of an outbox. born: ISO 8601; pending, gone: closed ranges; bytes: on disk."""

    epoch: int
    born: str
    first_unacked: int | None
    last: int
    pending: list[tuple[int, int]]
    gone: list[tuple[int, int]]
    bytes: int


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a gateway says of itself. The last will has neither `since` nor what only the living know."""

    state: Literal["online", "offline"]
    agent: str
    since: str | None = None
    outbox: OutboxState | None = None
    unclean_stops: int | None = None
    throttled_ms: int | None = None
