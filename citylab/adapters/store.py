"""The store: connections and transactions (psycopg 3) over the one write path that lies beside, in `saving`."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import msgspec
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from citylab import times
from citylab.adapters.accounts import CONSUMER
from citylab.adapters.bulk_writes import create_observations
from citylab.adapters.derived import FactsCache
from citylab.adapters.entity_changes import Changes
from citylab.adapters.entity_writes import create, lock_catalogue
from citylab.adapters.folding import fold
from citylab.adapters.pgbinary import PgArray, PgArrayDumper
from citylab.adapters.postgres import Connection, Parameters, PatientConnection, primary, translated
from citylab.adapters.saving import save, save_observations
from citylab.columns import Int64, Observations
from citylab.drafts import Draft, read_draft
from citylab.entities import SETS, EntityType
from citylab.errors import Unavailable
from citylab.model import Micros, Position, Topic
from citylab.writes import Saved, Write

_ATTEMPTS = 10  # of a transaction that met another
_ANSWER_AFTER = 5.0  # s that an answer takes beyond the statement's time-out, at most
_CONNECTION_WITHIN = 4.0  # s: as long a request hangs while the store is away


class PostgresTransaction:
    """`ports.Transaction` on one connection, which adapters may use directly."""

    def __init__(self, connection: Connection, cache: FactsCache) -> None:
        self.connection = connection
        self._cache = cache
        self.has_updates = False

    async def fetch(self, sql: str, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
        with translated():
            return await (await self.connection.execute(sql, parameters or None)).fetchall()

    async def execute(self, sql: str, parameters: Parameters = ()) -> int:
        with translated():
            return (await self.connection.execute(sql, parameters or None)).rowcount

    async def stream(
        self, sql: str, parameters: Parameters = (), *, size: int = 1_000
    ) -> AsyncGenerator[list[tuple[Any, ...]]]:
        with translated():
            async with self.connection.cursor("stream") as cursor:
                await cursor.execute(sql, parameters or None)
                while rows := await cursor.fetchmany(size):
                    yield rows

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        try:
            async with self.connection.transaction():
                yield
        except BaseException:
            self._cache.drop()
            raise

    async def lock_catalogue(self, *, shared: bool = False) -> None:
        await lock_catalogue(self, exclusive=not shared)

    async def create(self, set_name: str, body: Mapping[str, Any], *, now: Micros | None = None) -> int:
        with translated():
            draft = read_draft(SETS[set_name], msgspec.json.encode(body))
            return await create(self, draft, now=times.now() if now is None else now)

    async def save(self, write: Write) -> Saved:
        with translated():
            return await save(self.connection, self._cache, write)

    async def update(self, entity_type: EntityType, own: int, changes: Draft, *, now: Micros) -> None:
        with translated():
            await Changes(self, self.connection, self._cache, now).update(entity_type, own, changes)

    async def delete(
        self, entity_type: EntityType, selection: str, parameters: Mapping[str, Any] | None = None
    ) -> int:
        with translated():
            changes = Changes(self, self.connection, self._cache, times.now())
            return await changes.delete(entity_type, selection, parameters or {})

    async def save_observations(self, rows: Observations) -> Int64:
        with translated():
            self.has_updates = True
            return await save_observations(self.connection, self._cache, rows)

    async def create_observations(
        self, rows: Observations | Sequence[Draft], *, now: Micros
    ) -> tuple[Int64, dict[int, str]]:
        with translated():
            self.has_updates = True
            return await create_observations(self, self.connection, self._cache, rows, now=now)


class PostgresStore:
    """`ports.Store`: a bounded pool of connections to one database.

    url: postgresql://user:password@host:port[,host:port]/database; statement_timeout in seconds, 0 for none; patience: seconds that an
    answer may take until the connection is given up, 0 for ever; if it is not given, a little more than the statement's.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "citylab",
        connections: int = 8,
        statement_timeout: float = 30,
        patience: float | None = None,
    ) -> None:
        _hush()
        self._url = primary(url)
        if patience is None:
            patience = statement_timeout and statement_timeout + _ANSWER_AFTER
        self._patience = patience
        self._cache = FactsCache()
        self._no_connection = ""  # why the last attempt was in vain
        self._to_tell = False
        self._telling: asyncio.Task[None] | None = None
        self._pool: AsyncConnectionPool[PatientConnection] = AsyncConnectionPool(
            self._url,
            connection_class=PatientConnection,
            min_size=0,
            max_size=connections,
            open=False,
            configure=self._configure,
            timeout=_CONNECTION_WITHIN,
            reconnect_timeout=_CONNECTION_WITHIN / 2,  # or those who wait would wait for nobody who tries
            kwargs={
                "failed": self._connecting_failed,
                "application_name": name,
                "connect_timeout": 5,
                "autocommit": True,  # a transaction is opened where one is meant
                "options": f"-c timezone=UTC -c statement_timeout={round(statement_timeout * 1000)}"
                " -c idle_in_transaction_session_timeout=120000 -c search_path=public",
            },
        )

    def _connecting_failed(self, why: str) -> None:
        self._no_connection = why

    async def _configure(self, connection: PatientConnection) -> None:
        self._no_connection = ""
        connection.patience = self._patience
        connection.adapters.register_dumper(PgArray, PgArrayDumper)

    async def __aenter__(self) -> Self:
        with translated():
            await self._pool.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._telling is not None:
            await self._telling
        await self._pool.close()

    @asynccontextmanager
    async def transaction(self, *, read_only: bool = False) -> AsyncIterator[PostgresTransaction]:
        with translated(lambda: self._no_connection):
            async with self._pool.connection() as connection:
                # A statement of its own is a transaction of its own: reading needs no BEGIN and COMMIT around it.
                if read_only:
                    yield PostgresTransaction(connection, self._cache)
                    return
                transaction = PostgresTransaction(connection, self._cache)
                try:
                    async with connection.transaction():
                        yield transaction
                except BaseException:
                    self._cache.drop()
                    raise
                if transaction.has_updates:
                    self._tell()

    def _tell(self) -> None:
        """Tell who waits for updates, once for all that were committed meanwhile.

        Not inside the transactions: a NOTIFY makes each commit wait until the one before is on disk.
        """
        self._to_tell = True
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_all())

    async def _tell_all(self) -> None:
        with suppress(Unavailable):  # who waits looks by itself every few seconds
            while self._to_tell:
                self._to_tell = False
                async with self.transaction(read_only=True) as transaction:
                    await transaction.execute("NOTIFY citylab_updates")

    async def save(self, write: Write) -> Saved:
        for attempt in range(_ATTEMPTS):
            try:
                async with self.transaction() as transaction:
                    return await save(transaction.connection, self._cache, write)
            except Unavailable as error:
                if error.retry_after or attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError

    async def positions(self, topic: Topic) -> dict[int, Position]:
        async with self.transaction(read_only=True) as transaction:
            rows = await transaction.fetch(
                'SELECT partition, "offset", fingerprint FROM positions WHERE consumer = %s AND topic = %s',
                (CONSUMER, topic),
            )
        return {partition: Position(offset, bytes(fingerprint)) for partition, offset, fingerprint in rows}

    async def fold(self) -> int:
        async with self.transaction() as transaction:
            return await fold(transaction.connection)

    async def notifications(self, *channels: str, poll: float = 5.0) -> AsyncIterator[None]:
        with translated():
            async with await PatientConnection.connect(
                self._url, autocommit=True, connect_timeout=5
            ) as connection:
                connection.patience = self._patience
                for channel in channels:
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                while True:
                    yield
                    heard = [notice async for notice in connection.notifies(timeout=poll, stop_after=1)]
                    if not heard:
                        await connection.execute("SELECT 1")  # a line that has died is silent too

    async def wait(self, seconds: float = 60) -> None:
        """Return once the store answers. Raises `Unavailable`."""
        with translated(lambda: self._no_connection):
            async with asyncio.timeout(seconds), self._pool.connection(timeout=seconds) as connection:
                await connection.execute("SELECT 1")


def _hush() -> None:
    """Keep the pool from repeating at every try what our errors say once, unless somebody set its level."""
    logger = logging.getLogger("psycopg.pool")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
