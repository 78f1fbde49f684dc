"""The ports behind which the engines stand.

An adapter promises what the docstrings here say, and translates its engine's errors to `citylab.errors`.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol, Self

from citylab.model import Batch, Kept, Message, Micros, NewEvent, Position, Topic, Will

if TYPE_CHECKING:  # they need numpy, which a gateway has not
    from citylab.columns import Int64, Observations
    from citylab.drafts import Draft
    from citylab.entities import EntityType
    from citylab.writes import Saved, Write

START = Position(0, b"")


class EventLog(Protocol):
    """Durable, partitioned, append-only record of what arrived. Kafka in production, SQLite on a laptop.

    Opened with `async with`. A position's fingerprint is the first 8 bytes of SHA-256 over the event before it:
    offset and timestamp (µs) as signed 64-bit big-endian, the key's length as unsigned 32-bit big-endian, the key in UTF-8,
    the value. At offset 0 it is empty.
    """

    async def __aenter__(self) -> Self:
        """Connect; make the topics that are missing. Raises `Unavailable`."""
        ...

    async def __aexit__(self, *error: object) -> None:
        """Finish what was accepted and disconnect."""
        ...

    async def append(self, topic: Topic, events: Sequence[NewEvent]) -> None:
        """Return once every event is durable; on error none, some or all may be, and appending again is safe.

        Events with the same key go to the same partition and keep their order. Raises `Unavailable`, and ValueError
        for an event whose value is larger than 4 MiB.
        """
        ...

    async def partitions(self, topic: Topic) -> Sequence[int]:
        """The topic's partitions."""
        ...

    async def ends(self, topic: Topic) -> Mapping[int, int]:
        """For each partition the offset that the next event will have."""
        ...

    def read(
        self, topic: Topic, start: Mapping[int, Position], *, most: int = 1_000, most_bytes: int = 4 << 20
    ) -> AsyncGenerator[Batch]:
        """Yield batches of the partitions named in `start`, from those positions on, until cancelled or closed.

        Waits for new events; the partitions take turns. A batch holds at least one event and at most `most`, of
        about `most_bytes`. One batch's `after` is the next one's `before` in its partition. START means the log's
        start, wherever it is: a first `before` above offset 0 says that older events are gone. Raises
        `PositionLost` when a start lies outside the log, its fingerprint differs, or the retention removed events
        before they were read; `Unavailable` when the log goes away: then read again from the last `after`.
        Who leaves the loop early closes it (`contextlib.aclosing`).
        """
        ...

    async def tail(self, topic: Topic) -> Mapping[int, Position]:
        """The position after the newest event of each partition, for a reader that wants only what comes."""
        ...

    async def kept(
        self, readers: Mapping[Topic, Mapping[int, Position]], *, now: Micros
    ) -> Mapping[Topic, Kept]:
        """What every topic holds, and how near the retention is to what these readers have not read.

        readers: by topic, where its reader stands; a partition left out of it stands at offset 0. A topic left out has
        no reader to wait for. Raises `Unavailable`.
        """
        ...

    async def committed(self, group: str, topic: Topic) -> Mapping[int, Position]:
        """Where a reader that keeps its place in the log's consumer group stands; partitions without one are left out."""
        ...

    async def commit(self, group: str, topic: Topic, positions: Mapping[int, Position]) -> None:
        """Keep a consumer group's place. Commit after handling."""
        ...


class BrokerConnection(Protocol):
    """One MQTT 3.1.1 connection, opened with `async with`, that reconnects by itself until it is closed."""

    async def __aenter__(self) -> Self:
        """Start connecting; return at once. What the connection is doing is in `connected`."""
        ...

    async def __aexit__(self, *error: object) -> None:
        """Send what is in the socket's buffer, DISCONNECT, close."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and the subscriptions."""
        ...

    async def wait_connected(self) -> int:
        """Return the number of this connection (1, 2, ...) once connected, at once if it is."""
        ...

    async def wait_disconnected(self) -> str:
        """Return why, once the connection is gone, at once if it is."""
        ...

    def reconnect(self, why: str) -> None:
        """Drop the connection and open it anew, for example because no PUBACK comes."""
        ...

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int | None:
        """Hand a message to the connection; return its packet number, or None when there is no connection.

        A QoS 1 message whose connection ends before its PUBACK is forgotten: the caller sends it again. Packet numbers
        of two connections differ. None too when 65,535 messages wait for their PUBACK. Raises ValueError for a topic
        that cannot be published to.
        """
        ...

    async def pubacks(self) -> list[int]:
        """Wait for PUBACKs; return the packet numbers acknowledged since the last call. [] after a disconnect."""
        ...

    async def messages(self, *, most: int = 1_000, linger: float = 0.0) -> list[Message]:
        """Wait for messages; return up to `most` in order of receipt, after at most `linger` seconds more.

        Their PUBACKs leave in the order of receipt whatever the order of `ack()` calls is; call `ack()` from the event
        loop. After a reconnect `ack()` of an older message does nothing: the broker or the sender sends it again. What
        came before a disconnect is still given out; only at the byte limit it is dropped.
        """
        ...


class BrokerConnector(Protocol):
    """Makes connections to the one broker that the settings name; `citylab.wiring` has it."""

    def __call__(
        self,
        *,
        client_id: str,
        clean_session: bool = True,
        keep_alive: int = 30,
        subscriptions: Sequence[tuple[str, int]] = (),
        will: Will | None = None,
    ) -> BrokerConnection:
        """Make a connection, not yet opened. keep_alive: s; subscriptions: (topic filter, QoS 0 or 1)."""
        ...


class Transaction(Protocol):
    """One transaction of the store, READ COMMITTED. Statements are PostgreSQL's, with `%s` or `%(name)s` parameters.

    Raises `Unavailable` when the connection is gone or a statement took too long, `Rejected` with reason
    `conflict` when a key exists and `malformed` when a value is one that PostgreSQL cannot hold.
    """

    async def fetch(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> list[tuple[Any, ...]]:
        """Run a statement; return its rows."""
        ...

    async def execute(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> int:
        """Run a statement; return how many rows it touched."""
        ...

    def stream(
        self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = (), *, size: int = 1_000
    ) -> AsyncGenerator[list[tuple[Any, ...]]]:
        """Run a query through a cursor on the server; yield its rows `size` at a time, in constant memory."""
        ...

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """What happens in the block is rolled back, and nothing else, when the block raises."""
        ...

    async def lock_catalogue(self, *, shared: bool = False) -> None:
        """Keep every writer out until the transaction ends; the first thing to lock. shared: only who changes the catalogue."""
        ...

    async def create(self, set_name: str, body: Mapping[str, Any], *, now: Micros | None = None) -> int:
        """Create an entity from its SensorThings JSON, with deep insert; return its id. Raises `Rejected`.

        now: when its Locations came to be; the wall clock's time when it is None.
        """
        ...

    async def update(self, entity_type: "EntityType", own: int, changes: "Draft", *, now: Micros) -> None:
        """Change an entity that exists; call `lock_catalogue` first.

        now: the time of HistoricalLocations made by itself. Raises `Rejected`.
        """
        ...

    async def delete(
        self, entity_type: "EntityType", selection: str, parameters: Mapping[str, Any] | None = None
    ) -> int:
        """Delete entities with all that cannot be without them; return how many they were; call `lock_catalogue` first.

        selection: SQL whose rows are the keys of the entities, the columns of the type's `default_order`.
        """
        ...

    async def save(self, write: "Write") -> "Saved":
        """As `Store.save`, in this transaction. Raises `PositionMoved`."""
        ...

    async def save_observations(self, rows: "Observations") -> "Int64":
        """Store rows that came through the API, with all that follows from them; return their ids."""
        ...

    async def create_observations(
        self, rows: "Observations | Sequence[Draft]", *, now: Micros
    ) -> "tuple[Int64, dict[int, str]]":
        """Store Observations of existing Datastreams, each by itself; return ids, 0 where refused, and why, by row.

        drafts: they name their Datastream, and perhaps their feature, by id; now: the time of those that have none.
        """
        ...


class Store(Protocol):
    """PostgreSQL, with what TimescaleDB adds where it is offered. Opened with `async with`."""

    async def __aenter__(self) -> Self:
        """Open the pool; connections are made when they are needed."""
        ...

    async def __aexit__(self, *error: object) -> None:
        """Close the connections."""
        ...

    def transaction(self, *, read_only: bool = False) -> AbstractAsyncContextManager[Transaction]:
        """Commit at the end of the block, roll back when it raises."""
        ...

    async def save(self, write: "Write") -> "Saved":
        """Store a batch of the stream path in one transaction of its own, meeting other transactions patiently.

        Raises `CatalogueChanged` or `PositionMoved` (nothing stored), `Unavailable` (whether it was stored is in
        the positions).
        """
        ...

    async def positions(self, topic: Topic) -> Mapping[int, Position]:
        """Where processing stands in a topic; partitions of which nothing is stored are left out."""
        ...

    async def fold(self) -> int:
        """Fold hours and days from what writes touched; return how many hours it was."""
        ...

    def notifications(self, *channels: str, poll: float = 5.0) -> AsyncIterator[None]:
        """Yield at once, then whenever one of the channels is notified, and every `poll` seconds in any case."""
        ...


class EntityWrites(Protocol):
    """Writes entities; `citylab.adapters.entity_writes` is one."""

    async def create(self, transaction: Transaction, draft: "Draft", *, now: Micros) -> int:
        """Create an entity with everything that its draft holds, inside the transaction; return its id.

        now: the time of HistoricalLocations made by itself, and of Observations that have none. Raises `Rejected`.
        """
        ...
