"""Which Datastreams a client of `/live` means: those of a Thing, or of the Things whose Location is in a box."""

import asyncio
import time
from collections.abc import Collection
from typing import NamedTuple, Protocol, Self

import numpy as np
import shapely

from citylab.ports import Store

_KEPT_SECONDS = 2.0  # where all Things are is read at most so often, for all clients


class Box(NamedTuple):
    """A bounding box in degrees, as GeoJSON (RFC 7946 §5) has it: one whose west is greater than its east crosses the antimeridian."""

    west: float
    south: float
    east: float
    north: float

    @classmethod
    def read(cls, text: str) -> Self:
        """Read `west,south,east,north`. Raises ValueError."""
        try:
            box = cls(*map(float, text.split(",")))
        except (TypeError, ValueError):
            raise ValueError(
                f"bbox={text!r} is not west,south,east,north in degrees, such as 2.1,41.3,2.2,41.4"
            ) from None
        if not (abs(box.west) <= 180 and abs(box.east) <= 180 and -90 <= box.south <= box.north <= 90):
            raise ValueError(
                f"bbox={text!r}: west and east are -180 to 180; south and north -90 to 90, south first"
            )
        return box

    def shape(self) -> shapely.Geometry:
        """What it covers."""
        if self.west <= self.east:
            return shapely.box(*self)
        return shapely.union(
            shapely.box(self.west, self.south, 180, self.north),
            shapely.box(-180, self.south, self.east, self.north),
        )


class Things(Protocol):
    """Answers what a filter means. Raises `Unavailable`."""

    async def datastreams_of(self, thing: int) -> Collection[int] | None:
        """The ids of a Thing's Datastreams; None when there is no such Thing."""
        ...

    async def datastreams_in(self, box: Box) -> Collection[int]:
        """The ids of the Datastreams of all Things of which a Location is in a box, or touches it."""
        ...


class StoredThings:
    """The Things of the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reading = asyncio.Lock()
        self._read_at = -_KEPT_SECONDS
        self._shapes = np.zeros(0, object)
        self._datastreams: list[list[int]] = []  # of the Thing with that shape

    async def datastreams_of(self, thing: int) -> list[int] | None:
        """As `Things` has it."""
        async with self._store.transaction(read_only=True) as transaction:
            rows = await transaction.fetch(
                "SELECT t.id, d.id FROM things t LEFT JOIN datastreams d ON d.thing_id = t.id WHERE t.id = %s",
                (thing,),
            )
        return [datastream for _, datastream in rows if datastream is not None] if rows else None

    async def datastreams_in(self, box: Box) -> list[int]:
        """As `Things` has it; where they were at most two seconds ago."""
        async with self._reading:
            if time.monotonic() - self._read_at >= _KEPT_SECONDS:
                await self._read()
                self._read_at = time.monotonic()
            shapes, datastreams = self._shapes, self._datastreams
        inside = await asyncio.to_thread(shapely.intersects, box.shape(), shapes)
        return [datastream for i in np.flatnonzero(inside).tolist() for datastream in datastreams[i]]

    async def _read(self) -> None:
        async with self._store.transaction(read_only=True) as transaction:
            rows = await transaction.fetch(
                "SELECT (CASE WHEN l.location ->> 'type' = 'Feature' THEN l.location -> 'geometry' ELSE l.location END)::text,"
                " array_agg(d.id) FROM things_locations t JOIN locations l ON l.id = t.location_id"
                " JOIN datastreams d ON d.thing_id = t.thing_id GROUP BY t.thing_id, l.id"
            )
        texts = np.array([text for text, _ in rows], object)
        self._shapes = await asyncio.to_thread(shapely.from_geojson, texts, on_invalid="ignore")
        self._datastreams = [datastreams for _, datastreams in rows]
