"""Sets of numbers kept as ranges, because packs are numbered without holes and acknowledged almost in order."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """A set of integers as disjoint closed ranges in increasing order."""

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        self._count = 0
        for first, last in pairs:
            self.add(first, last)

    def add(self, first: int, last: int | None = None) -> None:
        """Put in the numbers from `first` to `last`, or `first` alone."""
        last = first if last is None else last
        begin, end = bisect_left(self._last, first - 1), bisect_right(self._first, last + 1)
        for at in range(begin, end):  # what touches them becomes one range with them
            self._count -= self._last[at] - self._first[at] + 1
        if begin < end:
            first, last = min(first, self._first[begin]), max(last, self._last[end - 1])
        self._first[begin:end], self._last[begin:end] = [first], [last]
        self._count += last - first + 1

    def remove(self, first: int, last: int | None = None) -> None:
        """Take out the numbers from `first` to `last` that are in it."""
        last = first if last is None else last
        begin, end = bisect_left(self._last, first), bisect_right(self._first, last)
        if begin >= end:
            return
        kept = []
        if self._first[begin] < first:
            kept.append((self._first[begin], first - 1))
        if self._last[end - 1] > last:
            kept.append((last + 1, self._last[end - 1]))
        for at in range(begin, end):
            self._count -= self._last[at] - self._first[at] + 1
        self._first[begin:end], self._last[begin:end] = [a for a, _ in kept], [b for _, b in kept]
        self._count += sum(b - a + 1 for a, b in kept)

    def pop(self) -> int:
        """Take out the least number. Raises IndexError when there is none."""
        first = self._first[0]
        self.remove(first)
        return first

    @property
    def first(self) -> int | None:
        """The least number."""
        return self._first[0] if self._first else None

    def pairs(self) -> list[tuple[int, int]]:
        """The ranges, in increasing order."""
        return list(zip(self._first, self._last, strict=True))

    def within(self, first: int, last: int) -> "Ranges":
        """Those of its numbers that are from `first` to `last`."""
        found = Ranges()
        for at in range(bisect_left(self._last, first), bisect_right(self._first, last)):
            found.add(max(self._first[at], first), min(self._last[at], last))
        return found

    def holes(self, first: int, last: int) -> list[tuple[int, int]]:
        """The ranges of the numbers from `first` to `last` that are not in it."""
        rest = Ranges([(first, last)])
        for at in range(bisect_left(self._last, first), bisect_right(self._first, last)):
            rest.remove(self._first[at], self._last[at])
        return rest.pairs()

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._last, number)
        return at < len(self._first) and self._first[at] <= number

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        for first, last in self.pairs():
            yield from range(first, last + 1)

    def __repr__(self) -> str:
        return f"Ranges({self.pairs()})"
