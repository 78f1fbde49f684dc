"""The schema: applied once, whoever applies it how often, and with a sentence where it cannot be."""

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime

import psycopg
import pytest
from psycopg import sql
from structlog.testing import capture_logs

from citylab.adapters import migrations
from citylab.adapters.migrations import migrate
from citylab.adapters.store import PostgresStore
from citylab.errors import ConfigurationError, Unavailable

MIGRATE = "import asyncio, sys; from citylab.adapters.migrations import migrate; print(asyncio.run(migrate(sys.argv[1])))"


@pytest.fixture(params=["embedded", "timescale"])
def databases(request):
    return request.getfixturevalue("embedded_databases" if request.param == "embedded" else "real_databases")


@pytest.fixture
def empty_url(databases) -> str:
    """A new database with nothing in it."""
    return databases.make(migrated=False)


@pytest.fixture
def other_url(empty_url):
    """The same database for a role that may do nothing but connect."""
    name = sql.Identifier("citylab_test_" + os.urandom(4).hex())
    with psycopg.connect(empty_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(name))
        admin.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(name))  # so that it can be taken apart
        role = name.as_string().strip('"')
        yield f"{empty_url.partition('://')[0]}://{role}:secret@{empty_url.rpartition('@')[2]}"
        admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(name))
        admin.execute(sql.SQL("DROP ROLE {}").format(name))


def fetch(url: str, statement: str) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def schema(url: str) -> list[tuple]:
    return fetch(
        url,
        "SELECT table_schema, table_name, column_name, data_type, column_default FROM information_schema.columns"
        " WHERE table_schema IN ('public', 'grafana') ORDER BY 1, 2, 3",
    )


def offers_timescale(url: str) -> bool:
    return bool(fetch(url, "SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'"))


def is_hypertable(url: str) -> bool:
    return bool(fetch(url, "SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")) and bool(
        fetch(url, "SELECT 1 FROM timescaledb_information.hypertables WHERE hypertable_name = 'observations'")
    )


async def test_an_empty_database_gets_all_of_it_and_then_nothing_more(empty_url):
    applied = await migrate(empty_url)
    before = schema(empty_url)

    assert applied[0] == "0001_store"
    assert [m.number for m in migrations.migrations()] == list(range(1, len(migrations.migrations()) + 1))
    assert (
        ("observations is a hypertable" in applied) == is_hypertable(empty_url) == offers_timescale(empty_url)
    )
    assert await migrate(empty_url) == []
    assert schema(empty_url) == before


def test_several_processes_at_once_apply_each_migration_once(empty_url):
    processes = [
        subprocess.Popen([sys.executable, "-c", MIGRATE, empty_url], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [process.communicate(timeout=60)[0] for process in processes]

    assert [process.returncode for process in processes] == [0] * 4
    assert sum("0001_store" in one for one in said) == 1
    assert sum(one.strip() == "[]" for one in said) == 3
    assert fetch(empty_url, "SELECT count(*) FROM migrations") == [(len(migrations.migrations()),)]


async def test_several_databases_of_one_server_are_migrated_at_once(databases):
    urls = [databases.make(migrated=False) for _ in range(3)]

    applied = await asyncio.gather(*(migrate(url) for url in urls))

    assert {one[0] for one in applied} == {"0001_store"}


async def test_a_database_of_a_newer_program_is_left_alone(empty_url):
    await migrate(empty_url)
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("INSERT INTO migrations (number, name, digest) VALUES (9000, 'future', 'x')")

    with pytest.raises(ConfigurationError, match=r"migration 9000.*install a newer"):
        await migrate(empty_url)


async def test_a_file_that_was_changed_since_is_said_and_not_applied_again(empty_url):
    await migrate(empty_url)
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("UPDATE migrations SET digest = 'other' WHERE number = 1")

    with capture_logs() as logs:
        assert await migrate(empty_url) == []

    assert [(one["log_level"], one["migration"]) for one in logs] == [("warning", "store")]


async def test_a_migration_that_fails_leaves_nothing_of_itself(empty_url, monkeypatch):
    known = migrations.migrations()
    broken = migrations.Migration(len(known) + 1, "broken", "CREATE TABLE half (a int); SELECT 1/0;")
    monkeypatch.setattr(migrations, "migrations", lambda: [*known, broken])

    with pytest.raises(Exception, match=r"."):
        await migrate(empty_url)

    assert fetch(empty_url, "SELECT max(number) FROM migrations") == [(len(known),)]
    assert fetch(empty_url, "SELECT to_regclass('half')") == [(None,)]
    monkeypatch.undo()
    await migrate(empty_url)


async def test_a_table_with_rows_becomes_a_hypertable_with_its_rows(real_databases, monkeypatch):
    url = real_databases.make(migrated=False)
    assert offers_timescale(url)
    monkeypatch.setattr(migrations, "_use_timescale", _no_timescale)
    await migrate(url)
    monkeypatch.undo()
    moments = [datetime(2026, 1, 1 + day, tzinfo=UTC) for day in range(0, 30, 5)]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.cursor().executemany(
            "INSERT INTO observations (id, datastream_id, phenomenon_time, result_number) VALUES (%s, 1, %s, %s)",
            [(i, moment, i / 2) for i, moment in enumerate(moments)],
        )

    assert await migrate(url) == ["observations is a hypertable"]

    assert is_hypertable(url)
    rows = fetch(url, "SELECT id, phenomenon_time, result_number FROM observations ORDER BY id")
    assert [(i, moment.astimezone(UTC), v) for i, moment, v in rows] == [
        (i, m, i / 2) for i, m in enumerate(moments)
    ]
    assert fetch(
        url,
        "SELECT count(*) > 1 FROM timescaledb_information.chunks WHERE hypertable_name = 'observations'",
    ) == [(True,)]


async def _no_timescale(_connection) -> bool:
    return False


async def test_a_role_that_may_not_create_tables_is_told_what_to_grant(empty_url, other_url):
    with pytest.raises(ConfigurationError) as caught:
        await migrate(other_url)

    assert "GRANT" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert fetch(
        empty_url, "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
    ) == [(0,)]


async def test_a_role_that_may_create_tables_and_no_more_gets_a_plain_table(databases, empty_url, other_url):
    await migrate(
        databases.make(migrated=False)
    )  # so that the role of Grafana, which belongs to the whole server, is there
    database, role = (
        sql.Identifier(part)
        for part in (empty_url.rpartition("/")[2], other_url.split("/")[2].partition(":")[0])
    )
    with psycopg.connect(empty_url, autocommit=True) as admin:
        admin.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(database, role))
        admin.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(role))

    with capture_logs() as logs:
        applied = await migrate(other_url)

    assert applied[0] == "0001_store"
    if offers_timescale(empty_url) and not is_hypertable(empty_url):
        assert "may not create the extension" in logs[0]["event"]
    assert await migrate(other_url) == []


async def test_a_store_that_is_not_there_is_unavailable():
    with pytest.raises(Unavailable):
        await migrate("postgresql://nobody:secret@127.0.0.1:1/nowhere")


async def test_tables_are_made_where_the_services_look_for_them(empty_url):
    with psycopg.connect(empty_url, autocommit=True) as connection:
        user = connection.info.user
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(user)))

    await migrate(empty_url)

    async with PostgresStore(empty_url, name="test") as store, store.transaction() as transaction:
        assert await transaction.fetch("SELECT count(*) FROM things") == [(0,)]
