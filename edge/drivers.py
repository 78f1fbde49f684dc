"""What an edge agent asks of the code that reads sensors or plays a recording."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from citylab.model import Reading


class Driver(Protocol):
    """Where a gateway's readings come from. `json_lines` is the one for scripts; simulators have others."""

    @property
    def things(self) -> Sequence[dict[str, Any]]:
        """SensorThings Things, each with its Locations and Datastreams (deep insert), in JSON's types.

        The whole set: what is no longer in it counts as inactive. A Datastream's `properties.streamName` is the name of
        its readings. The agent publishes it as the gateway's descriptor whenever it connects and when it has changed.
        """
        ...

    def readings(self, position: str | None) -> AsyncIterator[tuple[Sequence[Reading], str | None]]:
        """Yield readings and the place behind them, from the place `position` on; None is the beginning.

        A place is the driver's own text. The agent commits it together with the readings, so after a restart it asks for
        what comes behind the last readings that are safe. A driver that cannot go back (a sensor) yields None. It is
        asked for more only when there is room; the iterator's end is the end of the run, once all is acknowledged.
        """
        ...
