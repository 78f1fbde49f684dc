"""`citylab backup --continuous`: what was edited over HTTP survives the loss of the store, to the last commit."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from city import KINDS, City, clean_environment, run, running_city
from city_devices import SOON, T0, stream, thing
from city_engines import EmbeddedStore, Timescale, event_log, timescale_root
from stores import reachable_folder

from citylab.adapters.child import last_lines, start_child, stop
from citylab.adapters.migrations import migrate

NAME = "lamp/a"
RECEIVED = (
    "SELECT active AND restart_lsn >= %s::pg_lsn FROM pg_replication_slots"
    " WHERE starts_with(slot_name, 'citylab_archive_')"
)


class Own:
    """A store of the test's own, of either kind, with what its restore needs."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self._numbers = count()
        self._stack = ExitStack()
        self.server: Any = self._opened(EmbeddedStore(self._home())) if kind == "embedded" else self._real()
        self.url: str = self.server.url
        self.environment = clean_environment(
            CITYLAB_STORE_URL=self.url, CITYLAB_DATA=folder, PATH=self._path()
        )

    def _real(self) -> Timescale:
        server = Timescale(self._home())
        self._stack.callback(server.close)
        server.execute("ALTER ROLE citylab REPLICATION")
        asyncio.run(migrate(server.url))
        return server

    def _home(self) -> Path:
        home = self.folder / f"store-{next(self._numbers)}"
        if self.kind == "real":
            home.mkdir()
        return home

    def _opened(self, server: Any) -> Any:
        self._stack.callback(server.close)
        return server

    def _path(self) -> str:
        """PATH, with the pg_waldump of a Debian in a folder, which this system's loader cannot run by itself."""
        root = timescale_root()
        if self.kind == "real" and root and root != Path("/"):
            loader = next((root / "lib64").glob("ld-linux-*"))
            library = next((root / "usr/lib").glob("*-linux-gnu"))
            wrapper = self.folder / "bin" / "pg_waldump"
            wrapper.parent.mkdir()
            wrapper.write_text(
                f'#!/bin/sh\nexec {loader} --library-path {library} {root}/usr/lib/postgresql/17/bin/pg_waldump "$@"\n'
            )
            wrapper.chmod(0o755)
            return f"{wrapper.parent}:{os.environ['PATH']}"
        return os.environ["PATH"]

    def close(self) -> None:
        self._stack.close()

    def execute(self, statement: str) -> None:
        """Run a statement as the superuser."""
        if self.kind == "real":
            self.server.execute(statement)
        else:
            self.fetch(statement)

    def fetch(self, statement: str, url: str = "") -> list[tuple[Any, ...]]:
        with psycopg.connect(url or self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def add(self, name: str) -> str:
        """A Thing, as an edit makes it; the instant after it."""
        self.fetch(f"INSERT INTO things (name, description) VALUES ('{name}', '')")
        ((at,),) = self.fetch("SELECT clock_timestamp() AT TIME ZONE 'UTC'")
        return f"{at.isoformat()}Z"

    def names(self, url: str) -> set[str]:
        return {name for (name,) in self.fetch("SELECT name FROM things", url)}

    def citylab(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return run(*arguments, env=self.environment)

    @contextmanager
    def archiving(self, archive: Path, *options: str) -> Iterator["Archiver"]:
        archiver = Archiver([*options, str(archive)], self.environment, self.folder / "archiver.log")
        try:
            yield archiver
        finally:
            archiver.end()

    def restored(self, archive: Path, *options: str) -> str:
        """The URL of another store, which an archive was restored into."""
        home = self._home()
        if self.kind == "embedded":
            into = clean_environment(CITYLAB_STORE_URL=f"embedded:{home}", CITYLAB_DATA=self.folder)
            told = run("restore", archive, *options, env=into)
            assert told.returncode == 0, told.stderr
            return str(self._opened(EmbeddedStore(home)).url)
        told = self.citylab("restore", archive, *options, "--into", home / "data")
        assert told.returncode == 0, told.stderr
        assert "start the server" in told.stdout
        (home / "data").rename(self.folder / "prepared")
        return str(self._opened(Timescale(home, of=self.server, data=self.folder / "prepared")).url)


class Archiver:
    """`citylab backup --continuous` as a process."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log_file: Path) -> None:
        command = [sys.executable, "-m", "citylab", "backup", "--continuous", *arguments]
        self._log_file = log_file
        self._log_file.unlink(missing_ok=True)
        self.child = start_child(command, log_file=log_file, env=environment)

    def said(self) -> str:
        return last_lines(self._log_file, 1_000)

    def until_it_has_all(self, url: str) -> None:
        """Return when all that is committed now has been archived."""
        with psycopg.connect(url, autocommit=True) as connection:
            ((place,),) = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchall()
            self.until(
                lambda: (True,) in connection.execute(RECEIVED, (place,)).fetchall(), "all is received"
            )

    def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + SOON
        while not condition():
            assert self.child.poll() is None, self.said()
            assert time.monotonic() < deadline, f"not within {SOON} s: {what}\n{self.said()}"
            time.sleep(0.03)

    def until_it_says(self, text: str) -> None:
        self.until(lambda: text in self.said(), f"it says {text!r}")

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    def end(self) -> None:
        asyncio.run(stop(self.child))


@pytest.fixture(scope="module", params=KINDS)
def own(request) -> Iterator[Own]:
    with reachable_folder() as folder:
        store = Own(request.param, folder)
        try:
            yield store
        finally:
            store.close()


@pytest.fixture
def archive(own) -> Iterator[Path]:
    folder = own.folder / "archive"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    with psycopg.connect(own.url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active"
        )


def post(city: City, name: str) -> str:
    """Create a Thing; its link."""
    answer = city.http.post("/v1.1/Things", json={"name": name, "description": "as it was"})
    assert answer.status_code == 201, answer.text
    return str(answer.headers["location"])


def send(city: City, numbers: range) -> dict[float, float]:
    for number in numbers:
        city.pack("lamp", {"n": NAME, "t": T0 + number, "v": number}, epoch=7, seq=number + 1)
    return {T0 + number: float(number) for number in numbers}


def stored(city: City) -> list[tuple[float, float]]:
    return [
        (float(at), value)
        for at, value in city.fetch(
            "SELECT extract(epoch FROM phenomenon_time), result_number FROM observations ORDER BY 1"
        )
    ]


def test_a_store_that_is_lost_comes_back_to_its_last_commit(own, archive):
    with ExitStack() as stack:
        folder = stack.enter_context(reachable_folder())
        log_url = stack.enter_context(event_log(own.kind, folder))
        city = stack.enter_context(running_city(own.kind, folder, log_url, own.url))
        city.register("lamp", thing("lamp", stream(NAME)))
        sent = send(city, range(5))
        city.until(lambda: stored(city) == list(sent.items()), "the first are stored")

        with own.archiving(archive) as archiver:
            archiver.until_it_says('"archiving"')
            bench = post(city, "bench")
            archiver.until_it_has_all(own.url)
            ready = {c["name"]: c for c in city.http.get("/health/ready").json()["checks"]}
            assert [c["ok"] for name, c in ready.items() if name.startswith("archive ")] == [True]
            assert "citylab_archive_behind_bytes{archive=" in city.http.get("/metrics").text
            archiver.kill()
        mast = post(city, "mast")  # while nobody archives
        with own.archiving(archive) as archiver:
            archiver.until_it_says('"archiving"')
            assert "base backup" not in archiver.said(), "it goes on where it was"
            own.server.stop()
            archiver.until_it_says("nothing is archived")
            own.server.start()
            city.until(lambda: city.get("/v1.1/Things?$count=true")["@iot.count"] == 3, "the store is back")
            tree = post(city, "tree")
            assert city.http.patch(mast, json={"description": "edited"}).status_code == 200
            sent |= send(city, range(5, 10))
            city.until(lambda: stored(city) == list(sent.items()), "more is stored")
            archiver.until_it_has_all(own.url)
            archiver.kill()
        sent |= send(city, range(10, 15))  # these the log alone will have
        city.until(lambda: stored(city) == list(sent.items()), "what is not archived is stored")
        things, ledger = city.entities()["things"], city.ledger("lamp", 7)
        for name in city.services:
            city.kill(name)

        move(city, own.restored(archive))

        assert len(stored(city)) == 10
        for name in city.services:
            city.start(name)
        city.until(lambda: stored(city) == list(sent.items()), "what the log has is read again, once", 60)
        city.until(city.is_well, "all is well")
        assert city.entities()["things"] == things
        assert [city.http.get(link).json()["description"] for link in (bench, mast, tree)] == [
            "as it was", "edited", "as it was",
        ]  # fmt: skip
        kept = ("received", "packs", "records", "stored", "duplicates", "rejected")
        assert {k: city.ledger("lamp", 7)[k] for k in kept} == {k: ledger[k] for k in kept}


def move(city: City, store_url: str) -> None:
    """Let the city, whose services do not run, have another store."""
    city.settings = city.settings.replaced(store_url=store_url)
    for service in city.services.values():
        service.settings = city.settings
    if city._connection:
        city._connection.close()
        city._connection = None


def test_it_comes_back_as_it_was_at_an_instant(own, archive):
    before = own.add("before all")
    with own.archiving(archive) as archiver:
        archiver.until_it_says('"archiving"')
        at = own.add("wanted")
        own.add("a mistake")
        archiver.until_it_has_all(own.url)

    early = own.citylab("restore", archive, "--check", "--until", before)
    assert (early.returncode, "begins at" in early.stderr) == (2, True), early.stderr
    restored = own.restored(archive, "--until", at)

    assert {"before all", "wanted"} <= own.names(restored)
    assert "a mistake" not in own.names(restored)


def test_what_is_missing_or_damaged_is_noticed_and_what_was_before_it_comes_back(own, archive):
    with own.archiving(archive) as archiver:
        archiver.until_it_says('"archiving"')
        first = own.add("first")
        for name in ("second", "third", "fourth"):
            own.execute("SELECT pg_switch_wal()")
            own.add(name)
        archiver.until_it_has_all(own.url)
    whole = own.citylab("restore", archive, "--check", "--json")
    assert whole.returncode == 0, whole.stderr
    assert json.loads(whole.stdout)["last_commit"] > first
    *_, second, third, _fourth = sorted((archive / "wal").iterdir())

    def found(within: Path, changed: Callable[[Path], None], *options: object) -> tuple[int, str]:
        kept = within.read_bytes()
        changed(within)
        told = own.citylab("restore", archive, "--check", *options)
        within.write_bytes(kept)
        return told.returncode, told.stderr

    def spoil(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[64:128] = bytes(64)  # the first record after the page's header
        file.write_bytes(content)

    code, said = found(third, Path.unlink)
    assert (code, "has a hole" in said, "--until" in said) == (1, True, True), said
    code, said = found(third, lambda file: os.truncate(file, 1 << 20))
    assert (code, "is cut short" in said) == (1, True), said
    code, said = found(second, spoil)
    assert (code, "is damaged" in said) == (1, True), said
    code, said = found(archive / "base" / "PG_VERSION", lambda file: os.truncate(file, 1))
    assert (code, "is not what was written" in said) == (1, True), said
    code, said = found(archive / "base" / "backup_manifest", lambda file: os.truncate(file, 1_000))
    assert (code, "cannot be read" in said) == (1, True), said
    assert found(third, Path.unlink, "--until", first) == (0, "")

    third.unlink()
    restored = own.restored(archive, "--until", first)
    assert "first" in own.names(restored)
    assert not {"second", "third"} & own.names(restored)


def test_what_the_store_has_not_kept_begins_a_new_archive_beside_the_old_one(own, archive):
    with own.archiving(archive) as archiver:
        archiver.until_it_says('"archiving"')
        own.add("in the old one")
        archiver.until_it_has_all(own.url)
    own.fetch("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    own.add("in neither WAL")

    with own.archiving(archive) as archiver:
        archiver.until_it_says('"archiving"')
        assert "beginning a new one" in archiver.said()
        assert own.citylab("restore", archive / "before-1", "--check").returncode == 0
        own.execute("SELECT pg_switch_wal()")
        own.add("last")
        archiver.until_it_has_all(own.url)
    before = min(file.name for file in (archive / "wal").iterdir())
    with own.archiving(archive, "--base") as archiver:
        archiver.until_it_says('"archiving"')
        assert "taking a base backup" in archiver.said()
    assert min(file.name for file in (archive / "wal").iterdir()) > before, "what is older is let go"

    names = own.names(own.restored(archive))
    assert {"in the old one", "in neither WAL", "last"} <= names


def test_what_cannot_work_is_refused_with_what_to_do(own, archive):
    def refused(environment: dict[str, str], *arguments: object) -> str:
        told = run("backup", "--continuous", *arguments, env=environment)
        assert told.returncode == 2, told.stderr
        return str(told.stderr)

    with psycopg.connect(own.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")
    parts = psycopg.conninfo.conninfo_to_dict(own.url)
    plain = f"postgresql://plain:plain@{parts['host']}:{parts['port']}/{parts['dbname']}"
    said = refused(own.environment | {"CITYLAB_STORE_URL": plain}, archive)
    assert 'ALTER ROLE "plain" REPLICATION' in said

    nowhere = clean_environment(CITYLAB_DATA=own.folder / "nowhere")
    assert "no city is running" in refused(nowhere, own.folder / "other")
    assert "is not empty" in refused(own.environment, own.folder)
    with own.archiving(archive) as archiver:
        archiver.until_it_says('"archiving"')
        assert "another process" in refused(own.environment, archive)
    known = json.loads((archive / "archive.json").read_text())
    (archive / "archive.json").write_text(json.dumps(known | {"system": 1}))
    assert "of another store" in refused(own.environment, archive)
    (archive / "archive.json").write_text(json.dumps(known | {"since": ""}))
    assert "no whole base backup" in own.citylab("restore", archive, "--check").stderr
    (archive / "archive.json").write_text(json.dumps(known))
    assert "--into" in own.citylab("restore", archive).stderr
    (archive / "archive.json").write_text(json.dumps(known | {"major": 99}))
    assert "no pg_waldump of PostgreSQL 99" in own.citylab("restore", archive, "--check").stdout
    assert "is of a PostgreSQL 99" in run("restore", archive, env=nowhere).stderr


def test_an_archive_that_nobody_runs_is_told_and_cannot_fill_the_disk(own, archive):
    with own.archiving(archive) as archiver:
        archiver.until_it_says('"archiving"')
        assert "bytes of WAL are not in it yet" in own.citylab("doctor").stdout
    assert "nobody receives" in own.citylab("doctor").stdout

    own.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'")
    own.execute("SELECT pg_reload_conf()")
    for number in range(4):
        own.add(f"more {number}")
        own.execute("SELECT pg_switch_wal()")
    own.execute("CHECKPOINT")
    own.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
    own.execute("SELECT pg_reload_conf()")

    assert "FAIL store: archive" in (said := own.citylab("doctor").stdout), said
    assert "could not keep all WAL" in said
    with own.archiving(archive) as archiver:
        archiver.until_it_says("beginning a new one")
        archiver.until_it_says('"archiving"')
        refused = own.citylab("backup", "--continuous", "--end", archive)
        assert (refused.returncode, "another process" in refused.stderr) == (2, True), refused.stderr
    assert "more 3" in own.names(own.restored(archive))
    ended = own.citylab("backup", "--continuous", "--end", archive)
    assert ended.returncode == 0, ended.stderr
    assert "archive" not in own.citylab("doctor").stdout.partition("store:")[2].splitlines()[0]
