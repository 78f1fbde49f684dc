"""What every adapter of the store shares: the type of its connections, and the translation of errors."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import psycopg
from psycopg import errors
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import PoolTimeout

from citylab.errors import ConfigurationError, Rejected, TimedOut, Unavailable
from citylab.settings import redacted

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
_TOO_MUCH = (
    errors.ProgramLimitExceeded,
    errors.StatementTooComplex,
    errors.TooManyArguments,
    errors.TooManyColumns,
)
_ENDED = (errors.IdleInTransactionSessionTimeout, errors.TransactionTimeout)
Parameters = Sequence[Any] | Mapping[str, Any]


class PatientConnection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """Hangs up when the server says nothing for too long: a line that has died looks like a server that thinks.

    patience: s that one answer may take; 0 waits for ever.
    """

    patience = 0.0

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """Connect. The option `failed` is called with the reason where it was in vain: a pool keeps that to itself."""
        failed: Callable[[str], None] | None = options.pop("failed", None)
        try:
            return await super().connect(conninfo, **options)
        except psycopg.OperationalError as error:
            if failed:
                failed(_first_line(error))
            raise

    async def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
        if not self.patience:
            return await super().wait(gen, *args, **options)
        timer = asyncio.get_running_loop().call_later(self.patience, self._hang_up)
        try:
            return await super().wait(gen, *args, **options)
        finally:
            timer.cancel()

    def _hang_up(self) -> None:
        with socket.socket(fileno=os.dup(self.pgconn.socket)) as end:
            end.shutdown(socket.SHUT_RDWR)  # who waits reads the end of the connection


def primary(url: str) -> str:
    """The URL of a store, for a server that takes writes: a standby is as good as away until it is promoted.

    Of several hosts the first that does is taken. One that says which `target_session_attrs` it wants gets those.
    Raises `ConfigurationError` for what is no URL of PostgreSQL's.
    """
    try:
        given = conninfo_to_dict(url)
        return make_conninfo(url, target_session_attrs=given.get("target_session_attrs", "read-write"))
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(f"{redacted(url)} is no address of a store: {error}") from error


@contextmanager
def translated(no_connection: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn psycopg's errors into ours; database text goes no further than `__cause__`.

    no_connection: says why the last attempt to connect was in vain, "" if none was.
    """
    try:
        yield
    except errors.QueryCanceled as error:
        raise TimedOut("store", "a statement took longer than its time-out", retry_after=5) from error
    except (errors.DeadlockDetected, errors.SerializationFailure) as error:
        raise Unavailable("store", "two transactions met; this one was rolled back", retry_after=0) from error
    except errors.UniqueViolation as error:
        raise Rejected("conflict", "an entity with this key exists already") from error
    except errors.ForeignKeyViolation as error:
        raise Rejected("conflict", "an entity that this refers to does not exist (any more)") from error
    except (psycopg.DataError, *_TOO_MUCH) as error:
        raise Rejected("malformed", "a value that the store cannot hold") from error
    except (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction) as error:
        raise Unavailable(
            "store", "its schema is not there or too old: run `citylab migrate`", retry_after=5
        ) from error
    except PoolTimeout as error:
        why = no_connection() if no_connection else ""
        raise Unavailable("store", why or "no connection could be had in time") from error
    except errors.ReadOnlySqlTransaction as error:
        raise Unavailable("store", "it takes no writes: a standby, or set to be read only") from error
    except (psycopg.OperationalError, *_ENDED) as error:
        raise Unavailable("store", _first_line(error)) from error


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().splitlines()[0] if str(error) else "connection lost"
