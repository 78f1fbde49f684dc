from hypothesis import given
from hypothesis import strategies as st

from edge.ranges import Ranges

steps = st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.integers(0, 6)), max_size=60)


@given(steps)
def test_ranges_behave_like_a_set(steps):
    ranges, model = Ranges(), set()
    for adds, first, more in steps:
        numbers = set(range(first, first + more + 1))
        if adds:
            ranges.add(first, first + more)
            model |= numbers
        else:
            ranges.remove(first, first + more)
            model -= numbers

    assert list(ranges) == sorted(model)
    assert len(ranges) == len(model)
    for first, last in ((1, 46), (5, 9), (17, 17)):
        of_these = range(first, last + 1)
        assert list(ranges.within(first, last)) == [number for number in of_these if number in model]
        assert list(Ranges(ranges.holes(first, last))) == [n for n in of_these if n not in model]
    assert all((number in ranges) == (number in model) for number in range(50))
    assert ranges.first == min(model, default=None)
    gaps = zip(ranges.pairs(), ranges.pairs()[1:], strict=False)
    assert all(last + 1 < first for (_, last), (first, _) in gaps)


def test_pop_takes_the_least():
    ranges = Ranges([(5, 6), (2, 2)])

    assert [ranges.pop() for _ in range(3)] == [2, 5, 6]
    assert not ranges
