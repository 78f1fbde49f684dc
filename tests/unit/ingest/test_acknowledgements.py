"""What gateways are told of their packs."""

from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ingest.acknowledgements import Acknowledgements, ranges


def headers(seq: int, epoch: int = 7, reason: str | None = None) -> dict[str, str]:
    return {"epoch": str(epoch), "seq": str(seq)} | ({"reason": reason} if reason else {})


def told(acknowledgements: Acknowledgements) -> list[tuple[str, dict]]:
    return sorted(
        ((gateway, msgspec.json.decode(payload)) for gateway, payload in acknowledgements.take()), key=str
    )


def test_packs_of_a_gateway_and_epoch_are_told_together_in_ranges_and_once():
    acknowledgements = Acknowledgements()
    for seq in (5, 3, 1, 2, 2, 9):
        acknowledgements.add("a", headers(seq))
    acknowledgements.add("a", headers(1, epoch=8))
    acknowledgements.add("b", headers(2**53 - 1))

    assert told(acknowledgements) == [
        ("a", {"epoch": 7, "appended": [[1, 3], [5, 5], [9, 9]]}),
        ("a", {"epoch": 8, "appended": [[1, 1]]}),
        ("b", {"epoch": 7, "appended": [[2**53 - 1, 2**53 - 1]]}),
    ]
    assert told(acknowledgements) == []


def test_a_refusal_is_told_with_its_reason():
    acknowledgements = Acknowledgements()
    acknowledgements.add("a", headers(17, reason="malformed"))
    acknowledgements.add("a", headers(18))
    acknowledgements.add("b", headers(1, reason="over-quota"))

    assert told(acknowledgements) == [
        ("a", {"epoch": 7, "appended": [[18, 18]], "refused": {"17": "malformed"}}),
        ("b", {"epoch": 7, "appended": [], "refused": {"1": "over-quota"}}),
    ]


@given(st.lists(st.integers(1, 60)))
def test_ranges_hold_each_number_and_no_other_and_never_touch(numbers):
    found = ranges(numbers)

    assert [n for first, last in found for n in range(first, last + 1)] == sorted(set(numbers))
    assert all(one[1] + 1 < other[0] for one, other in pairwise(found))
