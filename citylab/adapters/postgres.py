"""What every adapter of the store shares: the type of its connections, and the translation of errors."""

import asyncio
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors
from psycopg.abc import RV, PQGen
from psycopg_pool import PoolTimeout

from citylab.errors import Rejected, TimedOut, Unavailable

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
_TOO_MUCH = (
    errors.ProgramLimitExceeded,
    errors.StatementTooComplex,
    errors.TooManyArguments,
    errors.TooManyColumns,
)
Parameters = Sequence[Any] | Mapping[str, Any]


class PatientConnection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """Hangs up when the server says nothing for too long: a line that has died looks like a server that thinks.

    patience: s that one answer may take; 0 waits for ever.
    """

    patience = 0.0

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


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg's errors into ours; database text goes no further than `__cause__`."""
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
        raise Unavailable("store", "no connection could be had in time") from error
    except psycopg.OperationalError as error:
        raise Unavailable(
            "store", str(error).strip().splitlines()[0] if str(error) else "connection lost"
        ) from error
