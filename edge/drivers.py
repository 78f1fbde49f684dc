"""What an edge agent asks of the code that reads sensors or plays a recording."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Protocol, runtime_checkable

from citylab.commands import Command, Result
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


@runtime_checkable
class Tasked(Protocol):
    """A driver that also carries out commands: the Tasks of its Things' TaskingCapabilities."""

    def perform(self, command: Command) -> AsyncGenerator[Result]:
        """Carry out a command, and yield what becomes of it: perhaps accepted and running, at last a final state.

        Called once a command, however often it comes; several may be under way at once. Each result is safe when the
        next one is asked for. A command that a crash interrupts is not handed over again: it counts as failed.
        """
        ...
