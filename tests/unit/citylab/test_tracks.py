"""A track follows from the positions, in whatever order they come."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citylab.tracks import Changes, Place, Point, follow, metres, on_earth

NORTH = 1 / 111_195  # degrees of latitude in a metre


def at(north: float) -> Point:
    """So many metres north of a street corner."""
    return 2.17, 41.39 + north * NORTH


class Track:
    """A Thing's places as a store keeps them, and its positions as they come."""

    def __init__(self, here: Point | None, declared: dict[int, Point | None], least: float) -> None:
        self.here, self.least = here, least
        self.positions: dict[int, Point] = {}
        self.ids = itertools.count(1)
        self.places = [Place(time, point, next(self.ids), False) for time, point in sorted(declared.items())]

    def take(self, *times: int, of: dict[int, Point]) -> Changes:
        self.positions |= {time: of[time] for time in times}
        since = min(times)
        before = [place for place in self.places if place.time < since]
        changes = follow(
            before[-1].point if before else self.here,
            [place for place in self.places if place.time >= since],
            {time: point for time, point in self.positions.items() if time >= since},
            times,
            least=self.least,
        )
        gone = {history for _, history in changes.gone}
        made = [Place(time, point, next(self.ids), True) for time, point in changes.made]
        kept = [place for place in self.places if place.history not in gone]
        self.places = sorted([*kept, *made], key=lambda place: (place.time, place.by_position))
        return changes


@given(
    norths=st.dictionaries(st.integers(0, 40), st.integers(0, 60), min_size=1, max_size=25),
    declared=st.dictionaries(st.integers(0, 40), st.none() | st.integers(0, 60).map(at), max_size=2),
    seed=st.integers(0, 1_000),
    sizes=st.lists(st.integers(1, 5), min_size=1),
)
def test_the_track_is_that_of_all_positions_in_order_of_time(norths, declared, seed, sizes):
    of = {time: at(north) for time, north in norths.items()}
    track = Track(at(0), declared, 10)
    shuffled = random.Random(seed).sample(sorted(of), len(of))
    for size in itertools.cycle(sizes):
        if not shuffled:
            break
        track.take(*shuffled[:size], of=of)
        shuffled = shuffled[size:]

    here: Point | None = at(0)
    expected = []
    for time in sorted(of.keys() | declared.keys()):
        if time in declared:
            here = declared[time]
            expected.append((time, here, False))
        if time in of and (here is None or metres(here, of[time]) >= 10):
            here = of[time]
            expected.append((time, here, True))
    assert [(place.time, place.point, place.by_position) for place in track.places] == expected


def test_a_late_position_moves_what_is_made_after_it_until_the_track_is_the_same_again():
    of = {time: at(north) for time, north in enumerate((0, 12, 18, 24, 36, 100, 101))}
    track = Track(None, {}, 10)
    track.take(0, 2, 3, 4, 5, 6, of=of)
    assert [place.time for place in track.places] == [0, 2, 4, 5]

    changes = track.take(1, of=of)

    assert [place.time for place in track.places] == [0, 1, 3, 4, 5]
    assert changes.made == [(1, at(12)), (3, at(24))]
    assert [time for time, _ in changes.gone] == [2]
    assert changes.span == (1, 3)


def test_what_was_too_near_to_a_place_that_was_declared_later_stands():
    """A descriptor's time is that of its receipt: what a position made after it is not undone."""
    places = [Place(5, at(0), 1, False), Place(6, at(3), 2, True)]

    assert follow(None, places, {4: at(50), 6: at(3)}, [4], least=10) == Changes([(4, at(50))])
    assert follow(None, places, {6: at(3)}, [], least=10) == Changes()


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ((2.17, 41.39), (2.17, 41.39), 0),
        ((2.17, 41.39), (2.17, 41.40), 1_111.95),
        ((2.17, 41.39), (2.18, 41.39), 834.25),
        ((179.9999, 0), (-179.9999, 0), 22.24),
        ((0, 90), (120, 90), 0),
        ((0, 0), (180, 0), 20_015_114.4),
    ],
)
def test_distances_are_those_on_a_sphere(one, other, distance):
    assert metres(one, other) == pytest.approx(distance, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("longitude", "latitude", "yes"),
    [(180, 90, True), (-180, -90, True), (180.1, 0, False), (0, -90.1, False), (float("nan"), 0, False)],
)
def test_a_position_is_on_earth(longitude, latitude, yes):
    assert on_earth(longitude, latitude) is yes
