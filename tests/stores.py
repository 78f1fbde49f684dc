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
    """A server on which a test gets a database of its own, migrated. (A template is of no use: TimescaleDB's
    scheduler stays connected to it.)
    """

    def __init__(self, url: str) -> None:
        self.server = url
        self.made: list[str] = []

    def make(self, *, migrated: bool = True) -> str:
        """The URL of a new database."""
        name = f"citylab_test_{secrets.token_hex(6)}"
        self._run(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        self.made.append(name)
        url = f"{self.server.rpartition('/')[0]}/{name}"
        if migrated:
            asyncio.run(migrate(url))
        return url

    def close(self) -> None:
        """Drop what was made."""
        for name in reversed(self.made):
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
