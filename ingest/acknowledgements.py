"""What the platform tells gateways: which of their packs the log has, coalesced."""

from collections.abc import Iterator, Mapping

import msgspec

from citylab.model import SECOND, Micros


class Acknowledgements:
    """Collects packs that are in the log, by gateway and epoch, until they are told. Stateless beyond that."""

    def __init__(self) -> None:
        self._appended: dict[tuple[str, int], list[int]] = {}
        self._refused: dict[tuple[str, int], dict[str, str]] = {}
        self._slow_down_until: dict[tuple[str, int], Micros] = {}

    def add(self, gateway: str, headers: Mapping[str, str]) -> None:
        """The log has the event of this pack, among the refused ones if its headers give a reason."""
        key = gateway, int(headers["epoch"])
        if "reason" in headers:
            self._refused.setdefault(key, {})[headers["seq"]] = headers["reason"]
        else:
            self._appended.setdefault(key, []).append(int(headers["seq"]))

    def slow_down(self, gateway: str, epoch: int, until: Micros) -> None:
        """This pack was dropped, and the gateway is to send nothing before that moment."""
        key = gateway, epoch
        self._slow_down_until[key] = max(until, self._slow_down_until.get(key, 0))

    def take(self) -> Iterator[tuple[str, bytes]]:
        """Yield gateway and payload of what is to be told (the contracts, topic `acks`), and forget it."""
        appended, self._appended = self._appended, {}
        refused, self._refused = self._refused, {}
        slow_down_until, self._slow_down_until = self._slow_down_until, {}
        for key in appended.keys() | refused.keys() | slow_down_until.keys():
            gateway, epoch = key
            body: dict[str, object] = {"epoch": epoch, "appended": ranges(appended.get(key, []))}
            if key in refused:
                body["refused"] = refused[key]
            if key in slow_down_until:
                body["slow_down_until"] = slow_down_until[key] / SECOND
            yield gateway, msgspec.json.encode(body)


def ranges(numbers: list[int]) -> list[list[int]]:
    """Closed ranges [[first, last], ...] of the numbers that occur."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found
