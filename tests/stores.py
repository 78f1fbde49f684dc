"""Stores of a test's own: databases on one embedded PostgreSQL a run, or on the TimescaleDB that runs."""

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from citylab.adapters.embedded_postgres import EmbeddedPostgres
from citylab.adapters.migrations import migrate


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A folder that the account of the embedded PostgreSQL can reach, which pytest's own is not when we are root."""
    folder = Path(tempfile.mkdtemp(prefix="citylab-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Databases:
    """A server on which a test gets a database of its own, migrated: a copy of one that nobody connects to."""

    def __init__(self, url: str) -> None:
        self.server = url
        self.made: list[str] = []
        self._template = ""

    @contextmanager
    def one(self) -> Iterator[str]:
        """The URL of a new database, which is dropped when the block ends."""
        url = self.make()
        try:
            yield url
        finally:
            self._drop(self.made.pop(self.made.index(url.rpartition("/")[2])))

    def make(self, *, migrated: bool = True) -> str:
        """The URL of a new database, dropped when the run ends."""
        if not migrated:
            return self._create()
        self._template = self._template or self._make_template()
        return self._create(self._template)

    def close(self) -> None:
        """Drop what was made."""
        while self.made:
            self._drop(self.made.pop())

    def _make_template(self) -> str:
        url = self._create()
        asyncio.run(migrate(url))
        name = url.rpartition("/")[2]
        # TimescaleDB's scheduler would stay connected to it.
        self._run(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        self._run(
            sql.SQL(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = {}"
            ).format(name)
        )
        return name

    def _create(self, template: str = "") -> str:
        name = f"citylab_test_{secrets.token_hex(6)}"
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template:  # by WAL: copying files would make the server write a checkpoint each time
            statement += sql.SQL(" TEMPLATE {} STRATEGY wal_log").format(sql.Identifier(template))
        self._run(statement)
        self.made.append(name)
        return f"{self.server.rpartition('/')[0]}/{name}"

    def _drop(self, name: str) -> None:
        self._run(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _run(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def embedded_server() -> Iterator[str]:
    """An embedded PostgreSQL that runs while the block does; its URL."""
    with reachable_folder() as folder:
        loop = asyncio.new_event_loop()
        server = EmbeddedPostgres(folder / "store")
        loop.run_until_complete(server.__aenter__())
        try:
            yield server.url
        finally:
            loop.run_until_complete(server.__aexit__(None, None, None))
            loop.close()
