"""Where the synthetic city's bus is: up and down its line all day, with a halt at every stop; a function of time alone."""

from bisect import bisect_right
from itertools import pairwise

from citylab.tracks import Point, metres
from simulators.city_signals import Moment, Noise

STOPS: tuple[Point, ...] = (  # from the sea to the mountain
    (2.1701, 41.3870),  # Plaça de Catalunya
    (2.1649, 41.3917),  # Passeig de Gràcia
    (2.1601, 41.3953),  # Diagonal
    (2.1567, 41.4011),  # Plaça del Sol
    (2.1503, 41.4065),  # Plaça de Lesseps
    (2.1487, 41.4135),  # Vallcarca
    (2.1480, 41.4186),  # Penitents
    (2.1420, 41.4250),  # Vall d'Hebron
)
_SPEED = 6.0  # m/s between stops
_HALT = 25.0  # s at a stop


def _timetable() -> tuple[list[float], list[Point]]:
    """Seconds into a round, and where the bus is then."""
    times, points = [0.0, _HALT], [STOPS[0], STOPS[0]]
    for here, there in pairwise((*STOPS, *STOPS[-2::-1])):
        arrival = times[-1] + metres(here, there) / _SPEED
        times += [arrival, arrival + _HALT]
        points += [there, there]
    return times, points


_TIMES, _POINTS = _timetable()


def _position(second: int) -> Point:
    into = second % _TIMES[-1]
    leg = bisect_right(_TIMES, into) - 1
    part = (into - _TIMES[leg]) / (_TIMES[leg + 1] - _TIMES[leg])
    (x, y), (u, v) = _POINTS[leg], _POINTS[leg + 1]
    return x + (u - x) * part, y + (v - y) * part


def longitude(moment: Moment, _noise: Noise) -> float:
    """Degrees."""
    return _position(moment.second)[0]


def latitude(moment: Moment, _noise: Noise) -> float:
    """Degrees."""
    return _position(moment.second)[1]
