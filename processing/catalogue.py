"""The streams that the store knows, at one version of its catalogue, ready to be looked up by the million."""

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from citylab.columns import NO_TIME, Int64
from citylab.model import Micros
from citylab.ports import Store
from citylab.writes import CATALOGUE_VERSION


class Kind(IntEnum):
    """What a value is, and as a bit what a Datastream takes."""

    NUMBER = 1
    TEXT = 2
    BOOLEAN = 4


# OGC 18-088 Table 12: observationType and the type of its results; any other takes everything.
_TAKES = {
    "OM_Measurement": Kind.NUMBER,
    "OM_CountObservation": Kind.NUMBER,
    "OM_CategoryObservation": Kind.TEXT,
    "OM_TruthObservation": Kind.BOOLEAN,
}
_EVERYTHING = Kind.NUMBER | Kind.TEXT | Kind.BOOLEAN
NO_STREAM = -1  # the slot of a record whose name no Datastream has


class Stream(NamedTuple):
    """A Datastream with a stream name.

    gateways: who may feed it, empty for anyone; features: (since, feature id) of its Thing's places, by time; none of
    a Thing that moves, whose places the store looks up for each write.
    """

    name: str
    datastream: int
    observation_type: str
    units: frozenset[str]
    gateways: frozenset[str]
    features: tuple[tuple[Micros, int], ...]


class Catalogue:
    """Streams by name and unit. A slot is one name with one of its units or none; columns are by slot.

    Columns have the shape (number of slots + 1,), the last for NO_STREAM.
    """

    def __init__(self, version: int, streams: Iterable[Stream]) -> None:
        self.version = version
        self.slots: dict[tuple[str, str | None], int] = {}
        self.by_name: dict[str, int] = {}  # the slot without a unit
        self.streams: list[Stream] = []
        self.units: list[str | None] = []
        for stream in streams:
            self.by_name[stream.name] = len(self.streams)
            for unit in (None, *sorted(stream.units)):
                self.slots[stream.name, unit] = len(self.streams)
                self.streams.append(stream)
                self.units.append(unit)
        self.datastream = _column((s.datastream for s in self.streams), 0)
        self.takes = _column(
            (_TAKES.get(s.observation_type.rpartition("/")[2], _EVERYTHING) for s in self.streams),
            _EVERYTHING,
        )
        # Most streams have one gateway and one place; who has more is looked up by itself.
        self._gateway_codes: dict[str, int] = {}
        self.owner = _column((self._owner(s) for s in self.streams), -1)
        self.feature = _column((s.features[0][1] if s.features else 0 for s in self.streams), 0)
        self.moved = _column((len(s.features) > 1 for s in self.streams), 0).astype(np.bool_)

    def _owner(self, stream: Stream) -> int:
        if not stream.gateways:
            return -1
        if len(stream.gateways) > 1:
            return -2
        (only,) = stream.gateways
        return self._gateway_codes.setdefault(only, len(self._gateway_codes))

    def gateway_code(self, gateway: str) -> int:
        """What `owner` holds for streams of this gateway alone; one that no stream has when there are none."""
        return self._gateway_codes.get(gateway, len(self._gateway_codes))

    def may_feed(self, gateway: str, slot: int) -> bool:
        """Whether the stream is this gateway's, or anyone's."""
        gateways = self.streams[slot].gateways
        return not gateways or gateway in gateways

    def features_at(self, slot: Int64, time: Int64) -> Int64:
        """The feature of each row: where its Thing was at that time, int64, shape (n,), 0 for nowhere."""
        feature = self.feature[slot]
        for moved in np.unique(slot[self.moved[slot]]).tolist():
            rows = slot == moved
            since = np.array([t for t, _ in self.streams[moved].features], np.int64)
            places = np.array([f for _, f in self.streams[moved].features], np.int64)
            since[0] = NO_TIME  # before the first known place it was there too
            feature[rows] = places[np.searchsorted(since, time[rows], side="right") - 1]
        return feature

    def __contains__(self, name: str) -> bool:
        return name in self.by_name


def _column(values: Iterable[int], no_stream: int) -> Int64:
    return np.array([*values, no_stream], np.int64)


EMPTY = Catalogue(0, ())


_MOST_PLACES = 1_000  # of a Thing; readings from before these are where it was first of them

# Of the places where streams' Things are, or were declared to be: those that a position made have theirs.
_FEATURES = """
INSERT INTO features_of_interest (pilot, name, description, encoding_type, feature, location_id)
SELECT DISTINCT ON (l.id) l.pilot, l.name, l.description, l.encoding_type, l.location, l.id
FROM datastreams d CROSS JOIN LATERAL (
    SELECT location_id FROM things_locations t WHERE t.thing_id = d.thing_id
    UNION ALL SELECT location_id FROM historical_locations h JOIN historical_locations_locations hl
        ON hl.historical_location_id = h.id WHERE h.thing_id = d.thing_id AND NOT h.by_position
) p JOIN locations l ON l.id = p.location_id
WHERE d.stream_name IS NOT NULL AND NOT EXISTS (SELECT 1 FROM features_of_interest f WHERE f.location_id = l.id)
ORDER BY l.id ON CONFLICT (location_id) DO NOTHING
"""

_STREAMS = f"""
SELECT d.stream_name, d.id, d.observation_type, d.unit_of_measurement ->> 'symbol', d.properties ->> 'senmlUnit',
    t.gateway, t.properties -> 'gateways',
    (SELECT json_agg(json_build_array((extract(epoch FROM p.time) * 1000000)::bigint, p.feature) ORDER BY p.time)
     FROM (SELECT DISTINCT ON (h.time) h.time, f.id AS feature
           FROM historical_locations h JOIN historical_locations_locations hl ON hl.historical_location_id = h.id
           JOIN features_of_interest f ON f.location_id = hl.location_id
           WHERE h.thing_id = t.id AND m.thing_id IS NULL
           ORDER BY h.time DESC, (f.feature ? 'type') DESC, f.id LIMIT {_MOST_PLACES}) p)
FROM datastreams d JOIN things t ON t.id = d.thing_id LEFT JOIN moving_things m ON m.thing_id = t.id
WHERE d.stream_name IS NOT NULL
"""  # noqa: S608 -- a number of ours


async def load(store: Store) -> Catalogue:
    """Read the catalogue; first make the features of the places where streams' Things are or were.

    A stream is fed by its Thing's gateway and those in the Thing's `properties.gateways`; by anyone when it has
    neither.
    """
    async with store.transaction() as transaction:
        ((version,),) = await transaction.fetch(f"{CATALOGUE_VERSION} FOR SHARE")
        await transaction.execute(_FEATURES)
        streams = []
        for (
            name,
            datastream,
            kind,
            symbol,
            senml_unit,
            gateway,
            gateways,
            features,
        ) in await transaction.fetch(_STREAMS):
            listed = [g for g in gateways if isinstance(g, str)] if isinstance(gateways, list) else []
            streams.append(
                Stream(
                    name,
                    datastream,
                    kind,
                    frozenset(unit for unit in (symbol, senml_unit) if unit),
                    frozenset([*listed, gateway] if gateway else listed),
                    tuple((since, feature) for since, feature in features or ()),
                )
            )
    return Catalogue(version, streams)
