"""The store as files, and back: its rows as text, table by table, in one transaction each way.

Not a dump of the engine but of what the migrations made, so that a backup from one PostgreSQL goes into another version, with
TimescaleDB or without. What means something in one cluster only (transaction ids) is made anew, and what services say
of themselves is left out.
"""

import gzip
import hashlib
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import structlog
from psycopg import sql

from citylab.adapters.migrations import migrate, migrations
from citylab.adapters.postgres import Connection, primary, translated
from citylab.errors import CitylabError, ConfigurationError
from citylab.log_watch import WRITERS
from citylab.times import format_instant, now

log = structlog.get_logger()
FORMAT = 1
MANIFEST = "manifest.json"
_LEFT_OUT = ("migrations", "services")
_FILLED = (
    "things",
    "observations",
    "gateways",
    "positions",
    "ledger",
)  # a store with rows there is not empty
_BLOCK = 1 << 20

Told = Callable[[str, int], None]
"""Is told of progress: a table, and how many of its rows are done."""


class Damaged(CitylabError):
    """A backup is not what its manifest says; nothing was changed."""


class Table(msgspec.Struct, frozen=True):
    """A table's rows. sha256: of the uncompressed text."""

    name: str
    columns: list[str]
    rows: int
    sha256: str

    @property
    def file(self) -> str:
        """Its file's name."""
        return f"{self.name}.copy.gz"


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds. migration: the newest of the store; positions: by topic and partition, the next offset."""

    format: int
    citylab: str
    made_at: str
    server: str
    migration: int
    positions: dict[str, int]
    sequences: dict[str, int]
    tables: list[Table]


async def back_up(url: str, folder: Path, *, version: str, told: Told) -> Manifest:
    """Write the store's rows, as they are at one moment, into a folder that is there. Writers go on meanwhile."""
    async with _connected(url) as connection, connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        rows = await _fetch(
            connection, "SELECT max(number), current_setting('server_version') FROM migrations"
        )
        ((migration, server),) = rows
        positions = await _fetch(
            connection, "SELECT topic || '/' || partition, \"offset\" FROM positions ORDER BY 1"
        )
        tables = [
            await _write_table(connection, folder, name, columns, told)
            for name, columns in (await _tables(connection)).items()
        ]
        sequences = await _fetch(
            connection,
            "SELECT sequencename::text, last_value FROM pg_sequences"
            " WHERE schemaname = 'public' AND last_value IS NOT NULL ORDER BY 1",
        )
    manifest = Manifest(
        FORMAT, version, format_instant(now()), server, migration, dict(positions), dict(sequences), tables
    )
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return manifest


def check(folder: Path, *, told: Told) -> Manifest:
    """Read a backup to its end and compare it with its manifest. Raises `Damaged`, `ConfigurationError`."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except OSError as error:
        raise ConfigurationError(f"{folder} holds no backup: {MANIFEST} cannot be read") from error
    except msgspec.DecodeError as error:
        raise Damaged(f"{folder / MANIFEST}: {error}") from error
    newest = migrations()[-1].number
    if manifest.format != FORMAT or manifest.migration > newest:
        raise ConfigurationError(
            f"{folder} was made by Citylab {manifest.citylab} (format {manifest.format}, migration {manifest.migration}); this one"
            f" knows format {FORMAT} and migration {newest}: install a newer one"
        )
    for table in manifest.tables:
        digest, rows = hashlib.sha256(), 0
        for block in _blocks(folder / table.file):
            digest.update(block)
            rows += block.count(b"\n")  # those of the values are escaped
            told(table.name, rows)
        if (rows, digest.hexdigest()) != (table.rows, table.sha256):
            raise Damaged(f"{folder / table.file} is not what was written: {rows:,} rows of {table.rows:,}")
    return manifest


async def restore(url: str, folder: Path, *, force: bool, grafana_password: str, told: Told) -> Manifest:
    """Put a backup that was checked into a store, all or nothing; then bring its schema up to date.

    Raises `ConfigurationError` when services write there, or it holds something and `force` is not given.
    """
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    await _make_ready(url, manifest, force=force)
    async with _connected(url) as connection:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(7102003)")  # the catalogue's: no writer
            await _load(connection, folder, manifest, told)
        await connection.execute("ANALYZE")
    await migrate(url, grafana_password=grafana_password)
    return manifest


async def _make_ready(url: str, manifest: Manifest, *, force: bool) -> None:
    """Bring an empty store to the backup's migration; see that another one may be replaced, and has it."""
    async with _connected(url) as connection:
        ((there,),) = await _fetch(connection, "SELECT to_regclass('public.migrations') IS NOT NULL")
        if there:
            services = await _fetch(connection, WRITERS)
            if services:
                names = ", ".join(name for (name,) in services)
                raise ConfigurationError(
                    f"services write into this store ({names}): stop them, and try again 10 s later"
                )
            filled = [
                table
                for table in _FILLED
                if await _fetch(connection, sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier(table)))
            ]
            if filled and not force:
                raise ConfigurationError(
                    f"the store is not empty ({', '.join(filled)}): restore into a new database, or say --force to replace all"
                )
    await migrate(url, upto=manifest.migration)
    async with _connected(url) as connection:
        ((has,),) = await _fetch(connection, "SELECT max(number) FROM migrations")
    if has != manifest.migration:
        raise ConfigurationError(
            f"the store has migration {has}, the backup {manifest.migration}: restore into a new database, which gets the"
            " backup's first and is then brought up to date"
        )


async def _load(connection: Connection, folder: Path, manifest: Manifest, told: Told) -> None:
    known = await _tables(connection)
    ours = [table for table in manifest.tables if table.name in known]
    if others := [table.name for table in manifest.tables if table.name not in known]:
        log.warning("left out tables that no migration made: they are somebody else's", tables=others)
    names = sql.SQL(", ").join(map(sql.Identifier, known))
    await connection.execute(sql.SQL("TRUNCATE {}, services").format(names))
    triggered = await _fetch(
        connection,
        "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid"
        " WHERE NOT tgisinternal AND tgname NOT LIKE 'ts\\_%' AND relnamespace = 'public'::regnamespace",
    )
    for (name,) in triggered:
        await connection.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(sql.Identifier(name)))
    for table in ours:
        columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
        into = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), columns)
        cursor, done = connection.cursor(), 0
        async with cursor.copy(into) as copy:
            for block in _blocks(folder / table.file):
                await copy.write(block)
                done += block.count(b"\n")
                told(table.name, done)
        if cursor.rowcount != table.rows:
            raise Damaged(
                f"{table.name} took {cursor.rowcount:,} rows of {table.rows:,}; nothing was changed"
            )
    for (name,) in triggered:
        await connection.execute(sql.SQL("ALTER TABLE {} ENABLE TRIGGER USER").format(sql.Identifier(name)))
    for name, value in manifest.sequences.items():
        await connection.execute(
            "SELECT setval(to_regclass(format('public.%%I', %s::text)), %s)", (name, value)
        )  # of somebody else's it does nothing
    await connection.execute("UPDATE catalogue SET version = pg_current_xact_id()::text::bigint")


async def _tables(connection: Connection) -> dict[str, list[str]]:
    """The tables with their columns, each after those that it refers to."""
    columns = await _fetch(
        connection,
        "SELECT c.relname::text, array_agg(a.attname::text ORDER BY a.attnum) FROM pg_class c"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''"
        " AND a.atttypid <> 'xid8'::regtype"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> ALL(%s)"
        " GROUP BY 1 ORDER BY 1",
        (list(_LEFT_OUT),),
    )
    of_table = {name: list(found) for name, found in columns}
    references = await _fetch(
        connection,
        "SELECT a.relname::text, b.relname::text FROM pg_constraint k JOIN pg_class a ON a.oid = k.conrelid"
        " JOIN pg_class b ON b.oid = k.confrelid WHERE k.contype = 'f' AND a.oid <> b.oid",
    )
    order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(of_table, ()))
    for name, needed in references:
        if name in of_table:
            order.add(name, needed)
    return {name: of_table[name] for name in order.static_order()}


async def _write_table(
    connection: Connection, folder: Path, name: str, columns: Sequence[str], told: Told
) -> Table:
    query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(name)
    )
    digest, rows = hashlib.sha256(), 0
    cursor = connection.cursor()
    with gzip.open(folder / f"{name}.copy.gz", "wb", compresslevel=1) as file:
        waiting = bytearray()
        async with cursor.copy(query) as copy:
            async for data in copy:  # one row a message
                waiting += data
                rows += 1
                if len(waiting) >= _BLOCK:
                    digest.update(waiting)
                    file.write(waiting)
                    waiting.clear()
                    told(name, rows)
        digest.update(waiting)
        file.write(waiting)
    told(name, rows)
    return Table(name, list(columns), rows, digest.hexdigest())


def _blocks(file: Path) -> Iterator[bytes]:
    try:
        with gzip.open(file, "rb") as opened:
            while block := opened.read(_BLOCK):
                yield block
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged(f"{file} cannot be read to its end: {error}") from error


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Connection]:
    with translated(), _allowed():
        async with await psycopg.AsyncConnection.connect(
            primary(url), autocommit=True, connect_timeout=5, options="-c search_path=public -c timezone=UTC"
        ) as connection:
            yield connection


@contextmanager
def _allowed() -> Iterator[None]:
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"this account may not do that ({error.diag.message_primary}): use the database's owner"
        ) from error


async def _fetch(
    connection: Connection, query: Any, parameters: Sequence[Any] | None = None
) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query, parameters)).fetchall()
