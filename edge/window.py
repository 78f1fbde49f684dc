"""How many packs may be on the way unacknowledged, and when one is sent again. Pure: time and randomness come in."""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

HURRY = 5.0  # s over which agents spread when a bridge is back


@dataclass(slots=True)
class Sent:
    """A pack on the way. packet: the connection's number of it; due: when it is sent again, None before its PUBACK."""

    seq: int
    live: bool
    packet: int
    at: float
    due: float | None = None


class Window:
    """Starts small, grows with acknowledgements, halves at a time-out. Times are seconds of one monotonic clock.

    It is the flow control from end to end: a broker's PUBACK comes whatever happens behind it. Half of it is kept free
    for live packs as long as there are any, so that a backlog does not delay them.
    """

    def __init__(
        self,
        *,
        first: int = 8,
        most: int = 256,
        timeout: float = 5.0,
        longest_timeout: float = 300.0,
        puback_within: float = 30.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._first, self._most = first, most
        self._first_timeout, self._longest_timeout = timeout, longest_timeout
        self._puback_within = puback_within
        self._draw = draw
        self._size = float(first)
        self._threshold = float(most)
        self._timeout = timeout
        self._punished_until = -math.inf
        self.in_flight: dict[int, Sent] = {}
        self._unconfirmed: dict[int, Sent] = {}  # by packet, in the order of sending

    @property
    def size(self) -> int:
        """How many packs may be on the way now."""
        return int(self._size)

    def room(self) -> int:
        """How many packs may be sent now."""
        return max(self.size - len(self.in_flight), 0)

    def backlog_room(self, *, reserve: bool) -> int:
        """How many of them may be backlog. reserve: whether there is live data to keep a half for."""
        if not reserve:
            return self.room()
        backlog = sum(not sent.live for sent in self.in_flight.values())
        return max(min(self.room(), max(self.size // 2, 1) - backlog), 0)

    def sent(self, seq: int, packet: int, now: float, *, live: bool = False) -> None:
        """A pack was handed to the connection, or with seq 0 a message that is not a pack."""
        entry = Sent(seq, live, packet, now)
        self._unconfirmed[packet] = entry
        if seq:
            self.in_flight[seq] = entry

    def pubacks(self, packets: Iterable[int], now: float) -> None:
        """The broker has these; from now on the platform's acknowledgement is waited for."""
        for packet in packets:
            if entry := self._unconfirmed.pop(packet, None):
                entry.due = now + self._timeout * (1 + self._draw() / 2)

    def acknowledged(self, first: int, last: int) -> int:
        """The platform has the packs from `first` to `last`. Returns how many of them were on the way."""
        if last - first < len(self.in_flight):
            done = [seq for seq in range(first, last + 1) if seq in self.in_flight]
        else:
            done = [seq for seq in self.in_flight if first <= seq <= last]
        for seq in done:
            self._unconfirmed.pop(self.in_flight.pop(seq).packet, None)
        if done:
            self._timeout = self._first_timeout
            grown = len(done) if self._size < self._threshold else len(done) / self._size
            self._size = min(self._size + grown, self._most)
        return len(done)

    def expire(self, now: float) -> list[Sent]:
        """Take out the packs that are to be sent again. Packs that were on the way together halve the window once."""
        late = [sent for sent in self.in_flight.values() if sent.due is not None and sent.due <= now]
        for sent in late:
            del self.in_flight[sent.seq]
        if any(sent.at > self._punished_until for sent in late):
            self._punished_until = now
            self._size = self._threshold = max(self._size / 2, 1.0)
            self._timeout = min(self._timeout * 2, self._longest_timeout)
        return late

    def hurry(self, now: float) -> None:
        """A bridge is back: send again what waits, at a moment in the next seconds that no other agent has."""
        moment = now + HURRY * self._draw()
        self._timeout = self._first_timeout
        self._threshold = float(self._most)
        self._punished_until = now
        for sent in self.in_flight.values():
            if sent.due is not None:
                sent.due = min(sent.due, moment)

    def stuck_at(self) -> float:
        """When the broker has left something without its PUBACK for so long that the connection must be dead."""
        oldest = next(iter(self._unconfirmed.values()), None)
        return oldest.at + self._puback_within if oldest else math.inf

    def next_due(self) -> float:
        """When `expire` will have something to say."""
        return min((sent.due for sent in self.in_flight.values() if sent.due is not None), default=math.inf)

    def restart(self) -> list[Sent]:
        """The connection is another: take out everything, and start small."""
        lost = list(self.in_flight.values())
        self.in_flight.clear()
        self._unconfirmed.clear()
        self._size = min(self._size, float(self._first))
        self._threshold = float(self._most)
        self._timeout = self._first_timeout
        return lost
