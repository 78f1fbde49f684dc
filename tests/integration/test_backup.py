"""`citylab backup` and `restore`: the store comes back row for row, and what came through the log since is read again."""

import asyncio
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from city import KINDS, City, clean_environment, new_city, run
from city_devices import T0, place, stream, thing
from stores import reachable_folder

from citylab.adapters.embedded_postgres import EmbeddedPostgres
from citylab.adapters.migrations import migrate
from citylab.adapters.sqlite_log import SqliteLog
from citylab.model import NewEvent, Topic

NAMES = ("lamp/a", "lamp/b")


@pytest.fixture(params=KINDS)
def databases(request) -> Any:
    return request.getfixturevalue("embedded_databases" if request.param == "embedded" else "real_databases")


@pytest.fixture
def folder() -> Iterator[Path]:
    with reachable_folder() as folder:
        yield folder


def cli(*arguments: object, store: str, data: Path) -> Any:
    return run(*arguments, "--data", data, env=clean_environment(CITYLAB_STORE_URL=store))


def fill(url: str) -> None:
    """Rows of kinds that text could lose, without services."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO things (name, description, properties) VALUES (%s, %s, %s)",
            ("a\tb\n\\N", "", json.dumps({"key": "k", "ü": [1.0, None, "\\."]})))  # fmt: skip
        connection.execute(
            "INSERT INTO observations (id, datastream_id, phenomenon_time, ordinal, result_number)"
            " SELECT i, 1, '2026-01-01'::timestamptz + i * interval '1 hour', 0, (1 / i::float8) FROM generate_series(1, 5000) i"
        )
        connection.execute("INSERT INTO positions VALUES ('processing', 'citylab.packs', 0, 17, '\\x00ff')")
        connection.execute("SELECT setval('observation_ids', 5000)")


def rows(folder: Path) -> dict[str, list[str]]:
    found = {}
    for file in folder.glob("*.copy.gz"):
        with gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
            found[file.name.partition(".")[0]] = sorted(lines)
    del found["catalogue"]
    return found


def test_a_store_comes_back_row_for_row_on_either_engine(databases, embedded_databases, folder):
    before, after = databases.make(), databases.make(migrated=False)
    fill(before)

    made = cli("backup", folder / "one", "--json", store=before, data=folder)
    assert made.returncode == 0, made.stderr
    manifest = json.loads(made.stdout)
    assert manifest["positions"] == {"citylab.packs/0": 17}
    assert {one["name"]: one["rows"] for one in manifest["tables"]}["observations"] == 5_000
    assert cli("restore", folder / "one", "--check", store=before, data=folder).returncode == 0

    for target in (after, embedded_databases.make(migrated=False)):  # another engine, another version
        restored = cli("restore", folder / "one", store=target, data=folder)
        assert restored.returncode == 0, restored.stderr
        again = cli("backup", folder / f"of-{target[-6:]}", store=target, data=folder)
        assert again.returncode == 0, again.stderr
        assert rows(folder / f"of-{target[-6:]}") == rows(folder / "one")
        with psycopg.connect(target) as connection:
            assert connection.execute("SELECT nextval('observation_ids')").fetchone() == (5_001,)
            key, announced = connection.execute(
                "SELECT key, (SELECT count(*) FROM pending_announcements) FROM things"
            ).fetchone()
            assert key == "k"
            assert announced == len(rows(folder / "one")["pending_announcements"]), (
                "restoring announces nothing"
            )


def test_what_must_not_be_overwritten_is_not(databases, folder):
    store = databases.make()
    fill(store)
    assert cli("backup", folder / "b", store=store, data=folder).returncode == 0

    twice = cli("backup", folder / "b", store=store, data=folder)
    assert (twice.returncode, "is not empty" in twice.stderr) == (2, True)
    full = cli("restore", folder / "b", store=store, data=folder)
    assert (full.returncode, "--force" in full.stderr) == (2, True)
    with psycopg.connect(store, autocommit=True) as connection:
        connection.execute("INSERT INTO services VALUES ('processing', '{}', now())")
        written = cli("restore", folder / "b", "--force", store=store, data=folder)
        assert (written.returncode, "stop them" in written.stderr) == (2, True)
        connection.execute("UPDATE services SET at = now() - interval '1 minute'")
        connection.execute("DELETE FROM observations")

    forced = cli("restore", folder / "b", "--force", store=store, data=folder)

    assert forced.returncode == 0, forced.stderr
    with psycopg.connect(store) as connection:
        assert connection.execute("SELECT count(*) FROM observations").fetchone() == (5_000,)

    (folder / "file").write_text("")
    nowhere = cli("backup", folder / "file" / "b", store=store, data=folder)
    assert (nowhere.returncode, "cannot be written" in nowhere.stderr) == (1, True)
    assert not list(folder.glob("*.partial"))


def test_a_damaged_backup_is_noticed_and_changes_nothing(databases, folder):
    store, other = databases.make(), databases.make()
    fill(store)
    assert cli("backup", folder / "b", store=store, data=folder).returncode == 0
    file = folder / "b" / "observations.copy.gz"
    whole = file.read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)

    for damage in (
        whole[:-100],
        gzip.compress(b"".join(lines[1:])),
        gzip.compress(b"".join(lines).replace(b"1", b"2", 1)),
    ):
        file.write_bytes(damage)
        for arguments in (["--check"], []):
            found = cli("restore", folder / "b", *arguments, store=other, data=folder)
            assert (found.returncode, str(file) in found.stderr) == (1, True), found.stderr
    manifest = json.loads((folder / "b" / "manifest.json").read_text())
    (folder / "b" / "manifest.json").write_text(json.dumps(manifest | {"migration": 9_999}))
    newer = cli("restore", folder / "b", store=other, data=folder)
    assert (newer.returncode, "install a newer one" in newer.stderr) == (2, True)
    with psycopg.connect(other) as connection:
        assert connection.execute("SELECT count(*) FROM things").fetchone() == (0,)
    assert cli("restore", folder, store=other, data=folder).returncode == 2


def test_the_embedded_store_of_a_city_that_is_stopped_and_its_log(folder):
    environment = clean_environment(CITYLAB_DATA=folder / "one")
    nothing = run("backup", folder / "b", env=environment)
    assert (nothing.returncode, "there is no store" in nothing.stderr) == (2, True)
    append(folder / "one" / "log", 3_000)
    asyncio.run(make_store(folder / "one" / "store"))

    made = run("backup", folder / "b", "--log", env=environment)
    assert made.returncode == 0, made.stderr
    other = clean_environment(CITYLAB_DATA=folder / "two")
    restored = run("restore", folder / "b", "--log", env=other)
    assert restored.returncode == 0, restored.stderr

    before, after = (asyncio.run(tail(folder / name / "log")) for name in ("one", "two"))
    assert before == after
    append(folder / "two" / "log", 1)
    assert asyncio.run(tail(folder / "two" / "log")) != after
    again = run("backup", folder / "c", env=other)
    assert again.returncode == 0, again.stderr
    assert rows(folder / "c") == rows(folder / "b")
    there = run("restore", folder / "b", "--log", env=other)
    assert (there.returncode, "is there" in there.stderr) == (2, True)
    assert run("restore", folder / "c", "--log", "--force", env=other).returncode == 2, "made without"


async def make_store(folder: Path) -> None:
    async with EmbeddedPostgres(folder) as server:
        await migrate(server.url)
        fill(server.url)


def append(folder: Path, count: int) -> None:
    async def work() -> None:
        async with SqliteLog(folder, segment_bytes=128 << 10) as log:
            for number in range(0, count, 100):
                events = [
                    NewEvent(f"gw-{i % 7}", b"x" * 200, {}, i)
                    for i in range(number, min(number + 100, count))
                ]
                await log.append(Topic.PACKS, events)

    asyncio.run(work())


async def tail(folder: Path) -> Any:
    async with SqliteLog(folder) as log:
        return await log.tail(Topic.PACKS)


@pytest.fixture(params=KINDS)
def own(request) -> Iterator[tuple[City, Any]]:
    """A city, and where it can have another database."""
    databases = request.getfixturevalue(
        "embedded_databases" if request.param == "embedded" else "real_databases"
    )
    with new_city(request) as city:
        yield city, databases


def send(city: City, numbers: range) -> dict[float, float]:
    """Packs of two streams; what they say."""
    values = {}
    for number in numbers:
        for name in NAMES:
            city.pack("lamp", *({"n": name, "t": T0 + number * 10 + i, "v": number + i / 10} for i in range(10)),
                epoch=7, seq=2 * number + 1 + NAMES.index(name))  # fmt: skip
        values |= {T0 + number * 10 + i: number + i / 10 for i in range(10)}
    return values


def stored(city: City, name: str) -> dict[float, float]:
    found = city.fetch(
        "SELECT extract(epoch FROM o.phenomenon_time)::float8, o.result_number FROM observations o"
        " JOIN datastreams d ON d.id = o.datastream_id WHERE d.stream_name = %s",
        name,
    )
    assert len(found) == len(dict(found))
    return dict(found)


def test_after_a_restore_the_log_is_read_again_from_where_the_backup_stands(own, folder):
    city, databases = own
    city.register("lamp", thing("lamp", *map(stream, NAMES)))
    sent = send(city, range(20))
    city.until(lambda: stored(city, NAMES[1]), "the first are stored")

    made = run("backup", folder / "b", "--json", env=city.environment())  # while services write
    assert made.returncode == 0, made.stderr

    sent |= send(city, range(20, 40))
    city.descriptor("lamp", thing("lamp", *map(stream, NAMES)), thing("mast", at=place(2.2, 41.4)))
    city.until(lambda: stored(city, NAMES[0]) == stored(city, NAMES[1]) == sent, "all is stored")
    city.until(lambda: len(city.entities()["things"]) == 2, "the mast is there")
    ledger, things = city.ledger("lamp", 7), city.entities()
    for name in city.services:
        city.kill(name)
    move(city, databases.make(migrated=False))  # the database is lost

    restored = run("restore", folder / "b", env=city.environment())
    assert restored.returncode == 0, restored.stderr
    assert len(stored(city, NAMES[0])) < len(sent)
    for name in city.services:
        city.start(name)

    city.until(
        lambda: stored(city, NAMES[0]) == stored(city, NAMES[1]) == sent, "what came since is read again", 60
    )
    city.until(lambda: len(city.entities()["things"]) == 2, "the mast too")
    assert {t: len(found) for t, found in city.entities().items()} == {
        t: len(found) for t, found in things.items()
    }
    kept = ("received", "packs", "records", "stored", "duplicates", "rejected")
    assert {k: city.ledger("lamp", 7)[k] for k in kept} == {k: ledger[k] for k in kept}
    city.until(city.is_well, "all is well")


def test_a_log_that_was_recreated_since_is_said_and_never_skipped(own, folder):
    city, databases = own
    city.register("lamp", thing("lamp", *map(stream, NAMES)))
    sent = send(city, range(5))
    city.until(lambda: stored(city, NAMES[0]) == stored(city, NAMES[1]) == sent, "all is stored")
    assert run("backup", folder / "b", env=city.environment()).returncode == 0
    for name in city.services:
        city.kill(name)
    move(city, databases.make(migrated=False), log_url=f"{city.settings.log_url}-other")
    assert run("restore", folder / "b", env=city.environment()).returncode == 0
    for name in city.services:
        city.start(name)

    def problems() -> list[str]:
        checks = city.http.get("/health/ready").json()["checks"]
        return [
            check["detail"] for check in checks if check["name"] == "processing: packs" and not check["ok"]
        ]

    found = city.until(problems, "it is said that this is another log")
    assert "the log ends at offset" in found[0]
    more = send(city, range(5, 8))
    assert stored(city, NAMES[0]) == sent

    city.kill("processing")
    city.until(
        lambda: run("positions", "reset", "--yes", env=city.environment()).returncode == 0,
        "processing counts as stopped",
    )
    city.start("processing")

    city.until(
        lambda: stored(city, NAMES[0]) == stored(city, NAMES[1]) == sent | more, "it is read from its start"
    )
    city.until(city.is_well, "all is well")


def move(city: City, store_url: str, **more: Any) -> None:
    """Let the city, whose services do not run, have another store."""
    city.settings = city.settings.replaced(store_url=store_url, **more)
    for service in city.services.values():
        service.settings = city.settings
    if city._connection:
        city._connection.close()
        city._connection = None
