"""Stores of a test's own: databases on one embedded PostgreSQL a run, or on the TimescaleDB that runs."""

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from citylab.adapters.embedded_postgres import EmbeddedPostgres
from citylab.adapters.migrations import migrate

PATIENCE = 20.0  # s


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
    """A server on which a test gets a database of its own, migrated.

    copies: as copies of one, which is quicker; not with TimescaleDB, whose scheduler would stay connected to that one.
    """

    def __init__(self, url: str, *, copies: bool) -> None:
        self.server = url
        self.made: list[str] = []
        self._copies = copies
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
        if not self._copies:
            return self._create_migrated()
        self._template = self._template or self._create_migrated().rpartition("/")[2]
        return self._create(self._template)

    def close(self) -> None:
        """Drop what was made."""
        while self.made:
            self._drop(self.made.pop())

    def _create_migrated(self) -> str:
        url = self._create()
        asyncio.run(migrate(url))
        return url

    def _create(self, template: str = "") -> str:
        name = f"citylab_test_{secrets.token_hex(6)}"
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template:  # by WAL: copying files would make the server write a checkpoint each time
            statement += sql.SQL(" TEMPLATE {} STRATEGY wal_log").format(sql.Identifier(template))
        self._run(statement)
        self.made.append(name)
        return f"{self.server.rpartition('/')[0]}/{name}"

    def _drop(self, name: str) -> None:
        drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._run(drop)
            except psycopg.errors.InsufficientPrivilege:  # a worker of TimescaleDB is there, and soon gone
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

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
