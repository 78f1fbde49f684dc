"""The catalogue of streams, looked up by the million."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processing.catalogue import EMPTY, NO_STREAM, Catalogue, Kind, Stream

OM = "http://www.opengis.net/def/observationType/OGC-OM/2.0/"


def stream(name: str, number: int, **more) -> Stream:
    fields = {"observation_type": OM + "OM_Measurement", "units": (), "gateways": (), "features": ()} | more
    return Stream(
        name, number, fields["observation_type"], frozenset(fields["units"]), frozenset(fields["gateways"]),
        tuple(fields["features"]),
    )  # fmt: skip


def test_a_stream_is_found_by_its_name_with_each_of_its_units_and_with_none():
    catalogue = Catalogue(1, [stream("a", 5, units=("Cel", "°C")), stream("b", 6)])

    found = {
        key: (catalogue.streams[slot].name, catalogue.units[slot], int(catalogue.datastream[slot]))
        for key, slot in catalogue.slots.items()
    }
    assert found == {
        ("a", None): ("a", None, 5), ("a", "Cel"): ("a", "Cel", 5), ("a", "°C"): ("a", "°C", 5), ("b", None): ("b", None, 6),
    }  # fmt: skip
    assert catalogue.by_name == {"a": catalogue.slots["a", None], "b": catalogue.slots["b", None]}
    assert "a" in catalogue
    assert "c" not in catalogue


@pytest.mark.parametrize(
    ("observation_type", "takes"),
    [
        (OM + "OM_Measurement", Kind.NUMBER),
        (OM + "OM_CountObservation", Kind.NUMBER),
        (OM + "OM_CategoryObservation", Kind.TEXT),
        (OM + "OM_TruthObservation", Kind.BOOLEAN),
        (OM + "OM_Observation", Kind.NUMBER | Kind.TEXT | Kind.BOOLEAN),
        ("anything else", Kind.NUMBER | Kind.TEXT | Kind.BOOLEAN),
        ("OM_Measurement", Kind.NUMBER),
    ],
)
def test_what_a_datastream_takes_follows_from_its_observation_type(observation_type, takes):
    assert Catalogue(1, [stream("a", 1, observation_type=observation_type)]).takes[0] == takes


def test_a_record_without_a_stream_has_a_slot_of_its_own_in_every_column():
    for catalogue in (EMPTY, Catalogue(1, [stream("a", 1, gateways=("g",), features=((0, 9), (5, 8)))])):
        assert catalogue.owner[NO_STREAM] == -1
        assert catalogue.takes[NO_STREAM] == Kind.NUMBER | Kind.TEXT | Kind.BOOLEAN
        assert catalogue.features_at(np.array([NO_STREAM]), np.array([7])).tolist() == [0]


def test_owners_are_codes_and_who_shares_is_looked_up():
    catalogue = Catalogue(
        1, [stream("a", 1, gateways=("g",)), stream("b", 2), stream("c", 3, gateways=("g", "h"))]
    )

    assert catalogue.owner[0] == catalogue.gateway_code("g") != catalogue.gateway_code("h")
    assert catalogue.gateway_code("h") == catalogue.gateway_code("unknown")
    assert catalogue.gateway_code("h") not in catalogue.owner
    assert catalogue.owner[1:3].tolist() == [-1, -2]
    assert [catalogue.may_feed(who, slot) for slot in (0, 1, 2) for who in ("g", "h", "i")] == [
        True, False, False, True, True, True, True, True, False,
    ]  # fmt: skip


PLACES = st.dictionaries(st.integers(-50, 50), st.integers(1, 99), max_size=5).map(
    lambda d: tuple(sorted(d.items()))
)


@given(
    st.lists(PLACES, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(-60, 60)), max_size=20),
)
def test_a_feature_is_that_of_the_last_place_before(places, rows):
    catalogue = Catalogue(1, [stream(f"s{i}", i + 1, features=some) for i, some in enumerate(places)])
    rows = [(slot % len(places), time) for slot, time in rows]

    def naive(slot: int, time: int) -> int:
        known = places[slot]
        before = [feature for since, feature in known if since <= time]
        return before[-1] if before else known[0][1] if known else 0

    found = catalogue.features_at(
        np.array([s for s, _ in rows], np.int64), np.array([t for _, t in rows], np.int64)
    )
    assert found.tolist() == [naive(*row) for row in rows]
