"""Of Observations that wait, older ones give way to the newest of their Datastream, and none of them silently."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from processing.waiting import Keys, Waiting, newest

TRIPLES = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 9), st.integers(1, 99)), unique=True, max_size=40
)


def keys(*rows: tuple[int, int, int]) -> Keys:
    return Keys(*(np.array([row[i] for row in rows], np.int64) for i in range(3)))


def rows(some: Keys) -> list[tuple[int, int, int]]:
    return list(zip(*(column.tolist() for column in some), strict=True))


def test_up_to_its_size_everything_waits_in_order():
    waiting = Waiting(4)
    waiting.add(keys((7, 1, 1), (7, 2, 2)))
    waiting.add(keys((8, 1, 3), (7, 3, 4)))
    assert rows(waiting.take(3)) == [(7, 1, 1), (7, 2, 2), (8, 1, 3)]
    assert rows(waiting.take(3)) == [(7, 3, 4)]
    assert (len(waiting), waiting.left_out) == (0, 0)


def test_beyond_it_the_newest_of_each_datastream_waits_in_the_place_of_its_first():
    waiting = Waiting(4)
    waiting.add(keys((7, 1, 1), (8, 5, 2), (7, 3, 3), (8, 4, 4), (9, 1, 5)))
    assert rows(waiting.take(9)) == [(7, 3, 3), (8, 5, 2), (9, 1, 5)]
    assert waiting.left_out == 2


def test_of_equal_times_the_later_id_is_newer():
    assert rows(newest(keys((7, 1, 2), (7, 1, 3), (7, 1, 1)))) == [(7, 1, 3)]


@given(st.lists(TRIPLES, max_size=6), st.integers(0, 20))
def test_every_observation_is_taken_or_counted_and_the_newest_is_never_left_out(batches, most):
    waiting = Waiting(most)
    for batch in batches:
        if batch:
            waiting.add(keys(*batch))
    given_rows = [row for batch in batches for row in batch]
    taken = rows(waiting.take(1_000))
    assert len(taken) + waiting.left_out == len(given_rows)
    assert {max(row for row in given_rows if row[0] == d) for d in {row[0] for row in given_rows}} <= set(
        taken
    )
    assert len(taken) <= max(most, 5)
