"""The store's schema: numbered SQL files, applied forward only, each in one transaction, by several at once or twice."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import NamedTuple

import psycopg
import structlog
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict

from citylab.adapters.postgres import primary, translated
from citylab.errors import ConfigurationError

log = structlog.get_logger()
_FILE = re.compile(r"(\d{4})_([a-z_]+)\.sql")
_LOCK = 7102002


class Migration(NamedTuple):
    """One numbered SQL file."""

    number: int
    name: str
    text: str

    @property
    def digest(self) -> str:
        """By which a file that was changed after it was applied is noticed."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def migrations() -> list[Migration]:
    """The files, in order."""
    files = ((_FILE.fullmatch(file.name), file) for file in resources.files(__name__).iterdir())
    return sorted(Migration(int(m[1]), m[2], file.read_text(encoding="utf-8")) for m, file in files if m)


async def migrate(url: str, *, grafana_password: str | None = None, upto: int | None = None) -> list[str]:
    """Bring the database up to date; return the names of what was applied.

    Makes observations a hypertable where the server offers TimescaleDB. `grafana_password` opens the role
    `citylab_grafana`, which reads schema `grafana` and nothing else. upto: the last migration to apply; None is the newest.
    Raises `Unavailable`, and `ConfigurationError` when the database is newer than this program, or the account may
    not do what is needed.
    """
    applied = []
    with translated(), _allowed(url):
        async with await psycopg.AsyncConnection.connect(
            primary(url),
            autocommit=True,
            connect_timeout=5,
            options="-c search_path=public -c client_min_messages=warning",
        ) as connection:
            await connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS migrations (number int PRIMARY KEY, name text NOT NULL,"
                " digest text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            rows = await (await connection.execute("SELECT number, digest FROM migrations")).fetchall()
            done: dict[int, str] = dict(rows)
            known = migrations()
            if done and max(done) > known[-1].number:
                raise ConfigurationError(
                    f"the store has migration {max(done)}, this Citylab knows {known[-1].number}: install a newer one"
                )
            for migration in known:
                if upto is not None and migration.number > upto:
                    break
                if migration.number in done:
                    if done[migration.number] != migration.digest:
                        log.warning("migration was changed after it was applied", migration=migration.name)
                    continue
                async with connection.transaction():
                    await connection.execute(migration.text)
                    await connection.execute(
                        "INSERT INTO migrations (number, name, digest) VALUES (%s, %s, %s)",
                        (migration.number, migration.name, migration.digest),
                    )
                applied.append(f"{migration.number:04d}_{migration.name}")
            if await _use_timescale(connection):
                applied.append("observations is a hypertable")
            if grafana_password is not None:
                statement = sql.SQL("ALTER ROLE citylab_grafana LOGIN PASSWORD {}").format(
                    sql.Literal(grafana_password)
                )
                await connection.execute(statement)
    return applied


@contextmanager
def _allowed(url: str) -> Iterator[None]:
    """Say what an account needs that may not do what a migration does."""
    try:
        yield
    except errors.InsufficientPrivilege as error:
        to = conninfo_to_dict(url)
        raise ConfigurationError(
            f"the account {to.get('user')} may not migrate the database {to.get('dbname')}"
            f" ({error.diag.message_primary}): let its owner run `citylab migrate`, or GRANT CREATE ON DATABASE"
            f" {to.get('dbname')} TO {to.get('user')} and GRANT CREATE ON SCHEMA public TO {to.get('user')}"
        ) from error
    except errors.RaiseException as error:  # of our own files
        raise ConfigurationError(f"{error.diag.message_primary}. {error.diag.message_hint or ''}") from error


async def _use_timescale(connection: psycopg.AsyncConnection) -> bool:
    """Make observations a hypertable where TimescaleDB is offered; return whether this changed anything."""
    offered = await connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'")
    if not await offered.fetchone():
        return False
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
    except errors.InsufficientPrivilege:
        log.warning(
            "TimescaleDB is installed, but this role may not create the extension: using a plain table"
        )
        return False
    is_one = await connection.execute(
        "SELECT 1 FROM timescaledb_information.hypertables WHERE hypertable_name = 'observations'"
    )
    if await is_one.fetchone():
        return False
    await connection.execute(
        "SELECT create_hypertable('observations', 'phenomenon_time', chunk_time_interval => interval '7 days',"
        " create_default_indexes => false, migrate_data => true)"
    )
    return True
