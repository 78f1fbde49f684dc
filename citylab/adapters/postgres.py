"""The store's connections and transactions (psycopg 3). What is written lies beside: `saving`, `entity_writes`."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import psycopg
from psycopg import errors
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from citylab.errors import Rejected, Unavailable

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Parameters = Sequence[Any] | Mapping[str, Any]


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg's errors into ours; database text goes no further than `__cause__`."""
    try:
        yield
    except errors.QueryCanceled as error:
        raise Unavailable("store", "a statement took longer than its time-out", retry_after=5) from error
    except (errors.DeadlockDetected, errors.SerializationFailure) as error:
        raise Unavailable("store", "two transactions met; this one was rolled back", retry_after=0) from error
    except errors.UniqueViolation as error:
        raise Rejected("conflict", "an entity with this key exists already") from error
    except errors.ForeignKeyViolation as error:
        raise Rejected("conflict", "an entity that this refers to does not exist (any more)") from error
    except (psycopg.DataError, errors.ProgramLimitExceeded) as error:
        raise Rejected("malformed", "a value that the store cannot hold") from error
    except PoolTimeout as error:
        raise Unavailable("store", "no connection was free in time") from error
    except psycopg.OperationalError as error:
        raise Unavailable(
            "store", str(error).strip().splitlines()[0] if str(error) else "connection lost"
        ) from error


class PostgresTransaction:
    """`ports.Transaction` on one connection, which adapters may use directly."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def fetch(self, sql: str, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
        with translated():
            return await (await self.connection.execute(sql, parameters or None)).fetchall()

    async def execute(self, sql: str, parameters: Parameters = ()) -> int:
        with translated():
            return (await self.connection.execute(sql, parameters or None)).rowcount

    async def stream(
        self, sql: str, parameters: Parameters = (), *, size: int = 1_000
    ) -> AsyncIterator[list[tuple[Any, ...]]]:
        with translated():
            async with self.connection.cursor("stream") as cursor:
                await cursor.execute(sql, parameters or None)
                while rows := await cursor.fetchmany(size):
                    yield rows


class PostgresStore:
    """`ports.Store`: a bounded pool of connections to one database.

    url: postgresql://user:password@host:port/database; statement_timeout in seconds, 0 for none.
    """

    def __init__(
        self, url: str, *, name: str = "citylab", connections: int = 8, statement_timeout: float = 30
    ) -> None:
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            url,
            min_size=0,
            max_size=connections,
            open=False,
            timeout=10,
            reconnect_timeout=5,
            kwargs={
                "application_name": name,
                "connect_timeout": 5,
                "autocommit": True,  # a transaction is opened where one is meant
                "options": f"-c timezone=UTC -c statement_timeout={round(statement_timeout * 1000)}"
                " -c idle_in_transaction_session_timeout=120000 -c search_path=public",
            },
        )

    async def __aenter__(self) -> Self:
        with translated():
            await self._pool.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def transaction(self, *, read_only: bool = False) -> AsyncIterator[PostgresTransaction]:
        with translated():
            async with self._pool.connection() as connection:
                # A statement of its own is a transaction of its own: reading needs no BEGIN and COMMIT around it.
                if read_only:
                    yield PostgresTransaction(connection)
                else:
                    async with connection.transaction():
                        yield PostgresTransaction(connection)

    async def wait(self, seconds: float = 60) -> None:
        """Return once the store answers. Raises `Unavailable`."""
        with translated():
            async with asyncio.timeout(seconds), self._pool.connection(timeout=seconds) as connection:
                await connection.execute("SELECT 1")
