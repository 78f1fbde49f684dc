"""A push to a stand-in of Grafana whose queries run on a real PostgreSQL, and to a real one where there is one."""

import asyncio
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grafana_standin
import psycopg
import pytest
import pytest_asyncio
from engines import url_of
from grafana_standin import GrafanaStandin

from citylab.adapters.embedded_postgres import EmbeddedPostgres
from citylab.adapters.migrations import migrate
from citylab.errors import ConfigurationError, Unavailable
from citylab.times import now
from dashboards.grafana import Change, PushReport, Refused, StoreAddress, push
from dashboards.overview import OVERVIEW
from dashboards.panels import Dashboard, Source, filled_in

PASSWORD = "grafana's pass/word"

SEED = """
INSERT INTO things (name, description, properties, gateway) VALUES
    ('Plaça', 'd', '{"key": "a"}', 'gw-1'), ('Moll', 'd', '{"key": "b"}', 'gw-2');
INSERT INTO locations (name, description, encoding_type, location) VALUES
    ('here', 'd', 'application/geo+json', '{"type": "Point", "coordinates": [2.17, 41.38]}'),
    ('odd', 'd', 'application/geo+json', '{"type": "Point", "coordinates": ["x"]}');
INSERT INTO things_locations VALUES (1, 1), (2, 2);
INSERT INTO sensors (name, description, encoding_type, metadata) VALUES ('s', 'd', 'text/html', '"m"');
INSERT INTO observed_properties (name, definition, description) VALUES ('NO2', 'http://x/8', 'd');
INSERT INTO datastreams (name, description, observation_type, unit_of_measurement, properties, thing_id, sensor_id,
        observed_property_id)
    SELECT name, 'd', 'OM_Measurement', jsonb_build_object('symbol', 'µg/m³', 'name', 'n'), properties::jsonb, thing, 1, 1
    FROM (VALUES
        ('fresh', '{"streamName": "a/fresh", "interval": "PT10S"}', 1),
        ('flagged', '{"streamName": "a/flagged", "interval": "PT10S"}', 1),
        ('quiet', '{"streamName": "a/quiet", "interval": "PT10S"}', 1),
        ('hourly', '{"streamName": "b/hourly", "interval": "PT1H", "stamp": "end"}', 2),
        ('nonsense', '{"streamName": "b/nonsense", "interval": "soon"}', 2),
        ('gone', '{"streamName": "b/gone", "interval": "PT10S", "active": false}', 2)
    ) AS d (name, properties, thing);
INSERT INTO observations (id, datastream_id, phenomenon_time, result_number, quality)
    SELECT draw_observation_ids(1), 1, t, 20, 0
    FROM generate_series(now() - interval '5 minutes', now(), interval '10 seconds') t;
INSERT INTO observations (id, datastream_id, phenomenon_time, result_number, quality)
    SELECT draw_observation_ids(1), d, t, v, q
    FROM (VALUES (2, now(), 7, 2), (3, now() - interval '2 hours', 8, 1), (4, now() - interval '30 minutes', 9, 1),
        (1, now() - interval '1 second', 9999, 3)) AS o (d, t, v, q);
INSERT INTO latest (datastream_id, id, phenomenon_time, result_number, quality, count)
    SELECT DISTINCT ON (datastream_id) datastream_id, id, phenomenon_time, result_number, quality, 1
    FROM observations WHERE quality < 3 ORDER BY datastream_id, phenomenon_time DESC;
INSERT INTO aggregates (datastream_id, width, window_start, count, good_count, mean, m2, min, max)
    SELECT 1, 60, date_trunc('minute', now()) - n * interval '1 minute', 6, 6, 20, 0, 20, 20
    FROM generate_series(1, 4) n;
INSERT INTO aggregates (datastream_id, width, window_start, count, good_count, mean, m2, min, max) VALUES
    (1, 3600, date_trunc('hour', now()) - interval '2 hours', 180, 180, 20, 0, 20, 20),
    (5, 3600, date_trunc('hour', now()) - interval '2 hours', 180, 180, 20, 0, 20, 20);
INSERT INTO gateways (name, status, status_at) VALUES
    ('gw-1', '{"state": "online", "outbox": {"epoch": 77, "pending": [[9, 10]], "gone": [[4, 4]]}}', now()),
    ('gw-2', '{"state": "offline", "outbox": "nonsense"}', now());
INSERT INTO outboxes VALUES ('gw-1', 77, 11, '{[9,10]}', '{[4,4]}', now(), '{}');
INSERT INTO ledger (gateway, epoch, received, packs, records, stored, duplicates, rejected, rejected_by_reason, first_at,
        last_at)
    VALUES
    ('gw-1', 77, '{[1,4),[6,9),[12,13)}', 7, 70, 60, 5, 5, '{"conflict": 3, "malformed": 2}', now(), now()),
    ('gw-1', 33, '{[1,4),[6,9)}', 6, 60, 60, 0, 0, '{}', now(), now()),
    ('gw-2', 0, '{}', 3, 30, 30, 0, 0, '{}', now(), now());
INSERT INTO rejections (gateway, epoch, seq, topic, partition, "offset", record, reason, detail, received_at)
    VALUES ('gw-1', 77, 3, 'citylab.packs', 0, 5, 2, 'conflict', 'another value', now());
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[str]:
    """The address of an embedded PostgreSQL of the test's own, whose roles are nobody else's."""
    folder = Path(tempfile.mkdtemp(prefix="citylab-grafana-"))
    os.chmod(folder, 0o755)  # noqa: PTH101 -- the account that runs the server must pass
    try:
        async with EmbeddedPostgres(folder / "store") as server:
            yield server.url
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def database(url: str) -> AsyncIterator[str]:
    """A database of its own, with the schema."""
    name = f"grafana_{secrets.token_hex(6)}"
    mine = urlsplit(url)._replace(path=f"/{name}").geturl()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield mine
        finally:
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
async def store(cluster: str) -> AsyncIterator[str]:
    async with database(cluster) as url:
        await migrate(url, grafana_password=PASSWORD)
        await run(url, SEED)
        yield url


@pytest.fixture
def grafana() -> Iterator[GrafanaStandin]:
    with grafana_standin.running() as standin:
        yield standin


async def run(url: str, sql: str) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(sql.encode())
        return await cursor.fetchall() if cursor.description else []


async def pushed(
    grafana: GrafanaStandin,
    store: str,
    password: str = PASSWORD,
    dashboards: tuple[Dashboard, ...] = (OVERVIEW,),
) -> PushReport:
    return await push(
        grafana.with_credential(),
        store=StoreAddress.parse(store),
        password=password,
        now_ms=now() // 1_000,
        dashboards=dashboards,
    )


async def test_a_push_makes_folder_data_source_and_dashboard_and_every_panel_works(
    grafana: GrafanaStandin, store: str
) -> None:
    report = await pushed(grafana, store)

    assert report.failed == []
    assert (report.version, report.folder, report.data_source) == ("12.3.0", Change.CREATED, Change.CREATED)
    assert [(d.title, d.change) for d in report.dashboards] == [("City overview", Change.CREATED)]
    assert report.dashboards[0].url == f"{grafana.url}/d/citylab-overview"
    rows = {panel.panel: panel.rows for panel in report.panels}
    assert rows["Newest values"] == 6
    assert rows["What is unwell"] == 3
    assert rows["Ingest ledger"] == 3
    assert rows["Rejected, by reason"] == 2
    assert all(rows.values()), rows
    assert grafana.in_folder == {"citylab-overview": "citylab"}
    assert PASSWORD not in json.dumps([grafana.sources, grafana.dashboards])
    assert PASSWORD not in "\n".join(report.lines()) + json.dumps(report.json())


async def test_pushing_twice_changes_nothing(grafana: GrafanaStandin, store: str) -> None:
    await pushed(grafana, store)
    state, writes = grafana.state(), grafana.writes

    report = await pushed(grafana, store)

    assert (grafana.state(), grafana.writes) == (state, writes)
    assert {report.folder, report.data_source, *(d.change for d in report.dashboards)} == {Change.UNCHANGED}


async def test_a_city_without_any_data_has_panels_that_work(grafana: GrafanaStandin, cluster: str) -> None:
    async with database(cluster) as url:
        await migrate(url, grafana_password=PASSWORD)
        report = await pushed(grafana, url)

    assert report.failed == []


async def test_a_new_password_of_the_role_reaches_grafana(grafana: GrafanaStandin, store: str) -> None:
    await pushed(grafana, store)
    await migrate(store, grafana_password="another")

    report = await pushed(grafana, store, "another")

    assert report.data_source is Change.UPDATED
    assert report.failed == []


async def test_another_address_of_the_store_reaches_grafana(grafana: GrafanaStandin, store: str) -> None:
    await push(
        grafana.with_credential(),
        store=StoreAddress.parse("127.0.0.1:1/elsewhere"),
        password=PASSWORD,
        now_ms=now() // 1_000,
    )
    report = await pushed(grafana, store)

    assert report.data_source is Change.UPDATED
    assert report.failed == []


async def test_what_was_changed_by_hand_is_replaced(grafana: GrafanaStandin, store: str) -> None:
    await pushed(grafana, store)
    grafana.dashboards["citylab-overview"]["title"] = "mine"

    report = await pushed(grafana, store)

    assert [d.change for d in report.dashboards] == [Change.UPDATED]
    assert grafana.dashboards["citylab-overview"]["title"] == "City overview"


async def test_a_panel_with_nonsense_is_accepted_by_grafana_and_reported_by_the_push(
    grafana: GrafanaStandin, store: str
) -> None:
    spoilt = replace(OVERVIEW.panels[0], title="spoilt", sql="SELECT nonsense FROM grafana.latest")
    secret = replace(OVERVIEW.panels[1], title="secret", sql="SELECT * FROM public.things")
    report = await pushed(grafana, store, dashboards=(replace(OVERVIEW, panels=(spoilt, secret)),))

    assert [panel.panel for panel in report.failed] == ["spoilt", "secret"]
    assert 'column "nonsense" does not exist' in str(report.failed[0].error)
    assert "permission denied" in str(report.failed[1].error)


async def test_a_wrong_password_of_the_role_says_what_to_do(grafana: GrafanaStandin, store: str) -> None:
    report = await pushed(grafana, store, "wrong")

    assert len(report.failed) == len(OVERVIEW.panels) + 1
    assert "citylab migrate" in str(report.failed[0].error)


async def test_a_store_that_grafana_cannot_reach_says_what_to_do(grafana: GrafanaStandin) -> None:
    report = await pushed(grafana, "127.0.0.1:1/citylab")

    assert "CITYLAB_GRAFANA_STORE_URL" in str(report.failed[0].error)


async def test_a_token_of_a_service_account_is_enough(grafana: GrafanaStandin, store: str) -> None:
    grafana.tokens.add("glsa_x")

    report = await push(
        grafana.url, token="glsa_x", store=StoreAddress.parse(store), password=PASSWORD, now_ms=now() // 1_000
    )

    assert report.failed == []


@pytest.mark.parametrize("end", ["", "/"])
async def test_a_grafana_under_a_path_is_found(store: str, end: str) -> None:
    with grafana_standin.running("/tools/grafana") as grafana:
        report = await push(
            grafana.with_credential() + end,
            store=StoreAddress.parse(store),
            password=PASSWORD,
            now_ms=now() // 1_000,
        )

    assert report.failed == []
    assert report.dashboards[0].url == f"{grafana.url}/d/citylab-overview"


@pytest.mark.parametrize(
    ("credential", "said"),
    [({"password": "wrong"}, "does not accept"), ({"user": "nobody", "password": "x"}, "does not")],
)
async def test_a_wrong_password_of_grafana_is_a_sentence(
    grafana: GrafanaStandin, credential: dict[str, str], said: str
) -> None:
    with pytest.raises(Refused, match=said) as caught:
        await push(
            grafana.with_credential(**credential),
            store=StoreAddress("h", 1, "d"),
            password="",
            now_ms=now() // 1_000,
        )
    assert "CITYLAB_GRAFANA_TOKEN" in str(caught.value)
    assert grafana.writes == 0


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/api/folders", "create folders"),
        ("/api/datasources", "create data sources"),
        ("/api/dashboards", "save dashboards"),
        ("/api/ds/query", "run queries"),
    ],
)
async def test_a_missing_permission_is_a_sentence(
    grafana: GrafanaStandin, store: str, path: str, what: str
) -> None:
    grafana.forbidden.add(path)

    with pytest.raises(Refused, match=f"does not allow this account to {what}.*Admin"):
        await pushed(grafana, store)


@pytest.mark.parametrize("path", ["/api/folders", "/api/ds/query"])
async def test_a_grafana_without_such_a_path_is_a_sentence(
    grafana: GrafanaStandin, store: str, path: str
) -> None:
    grafana.absent.add(path)

    with pytest.raises(Refused, match="knows no way to"):
        await pushed(grafana, store)


async def test_another_data_source_of_that_name_is_not_taken_over(
    grafana: GrafanaStandin, store: str
) -> None:
    grafana.sources["theirs"] = {"uid": "theirs", "name": "Citylab store", "version": 1}

    with pytest.raises(Refused, match="another data source with the name 'Citylab store'"):
        await pushed(grafana, store)


async def test_where_nothing_answers_it_says_so() -> None:
    with pytest.raises(Unavailable, match="Is it running there"):
        await push("http://a:b@127.0.0.1:1", store=StoreAddress("h", 1, "d"), password="", now_ms=0)


async def test_something_else_than_grafana_is_told_apart(grafana: GrafanaStandin) -> None:
    grafana.absent.add("/api/health")
    with pytest.raises(Refused, match=r"CITYLAB_GRAFANA_URL"):
        await push(grafana.with_credential(), store=StoreAddress("h", 1, "d"), password="", now_ms=0)


@pytest.mark.parametrize("url", ["", "127.0.0.1:3000", "ftp://a:b@h", "http://127.0.0.1:3000"])
async def test_an_address_that_cannot_be_used_names_the_setting(url: str) -> None:
    with pytest.raises(ConfigurationError, match="CITYLAB_GRAFANA_URL"):
        await push(url, store=StoreAddress("h", 1, "d"), password="", now_ms=0)


async def command(tmp_path: Path, **variables: str) -> tuple[int, str, str]:
    """Run `citylab dashboards push --json` as a person does."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("CITYLAB_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "citylab", "dashboards", "push", "--json", "--data", str(tmp_path),
        env=mine | variables, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_command_pushes_and_tells_in_json(
    grafana: GrafanaStandin, store: str, tmp_path: Path
) -> None:
    code, out, err = await command(
        tmp_path,
        CITYLAB_GRAFANA_URL=grafana.with_credential(),
        CITYLAB_STORE_URL=store,
        CITYLAB_GRAFANA_DB_PASSWORD=PASSWORD,
    )

    assert (code, err) == (0, "")
    assert json.loads(out)["dashboards"][0]["change"] == "created"


async def test_the_command_fails_with_a_sentence_and_1(
    grafana: GrafanaStandin, store: str, tmp_path: Path
) -> None:
    wrong = grafana.with_credential(password="wrong")
    code, out, err = await command(tmp_path, CITYLAB_GRAFANA_URL=wrong, CITYLAB_STORE_URL=store)

    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "does not accept the user and password" in err

    code, _, err = await command(
        tmp_path, CITYLAB_GRAFANA_URL="http://a:b@127.0.0.1:1", CITYLAB_STORE_URL=store
    )
    assert code == 1
    assert "Is it running there?" in err
    assert "Traceback" not in err


async def test_panels_that_fail_make_the_command_fail(
    grafana: GrafanaStandin, store: str, tmp_path: Path
) -> None:
    code, out, _ = await command(
        tmp_path,
        CITYLAB_GRAFANA_URL=grafana.with_credential(),
        CITYLAB_STORE_URL=store,
        CITYLAB_GRAFANA_STORE_URL="127.0.0.1:1/citylab",
    )

    assert code == 1
    assert json.loads(out)["panels"][0]["error"]


async def test_the_views_say_what_the_tables_mean(store: str) -> None:
    states = dict(await run(store, "SELECT datastream, state FROM grafana.latest"))
    assert states == {
        "fresh": "well", "flagged": "suspect", "quiet": "silent", "hourly": "well", "nonsense": "never heard",
        "gone": "retired",
    }  # fmt: skip
    assert await run(
        store,
        "SELECT gateway, epoch, received, missing, waiting, lost, unsettled FROM grafana.ledger ORDER BY 1, 2",
    ) == [
        ("gw-1", 33, 6, 0, 0, 0, 2),  # of an older outbox: nobody says anything of 4 and 5
        ("gw-1", 77, 7, 2, 2, 1, 0),  # 5 and 11; 9 and 10 wait, 4 is lost
        ("gw-2", 0, 0, None, 0, 0, None),
    ]
    assert await run(store, "SELECT reason, records FROM grafana.rejected ORDER BY 1") == [
        ("conflict", 3),
        ("malformed", 2),
    ]
    assert await run(store, "SELECT reason, open FROM grafana.rejections") == [("conflict", True)]
    assert await run(
        store,
        "SELECT datastream_id, expected, completeness FROM grafana.aggregates WHERE width = 3600 ORDER BY 1",
    ) == [(1, 360, 0.5), (5, None, None)]
    places = await run(store, "SELECT thing, longitude, latitude FROM grafana.things ORDER BY id")
    assert places == [("Plaça", 2.17, 41.38), ("Moll", None, None)]
    slow = await run(store, "SELECT sum(count) FROM grafana.throughput WHERE datastream_id = 4")
    assert slow == [(1,)]


async def test_the_role_reads_the_views_and_nothing_else(store: str) -> None:
    address = StoreAddress.parse(store)
    async with await psycopg.AsyncConnection.connect(
        host=address.host, port=address.port, dbname=address.database, user="citylab_grafana", password=PASSWORD,
        autocommit=True,
    ) as connection:  # fmt: skip
        assert await (await connection.execute("SHOW statement_timeout")).fetchone() == ("30s",)
        assert await (await connection.execute("SELECT count(*) FROM latest")).fetchone() == (6,)  # the view
        for statement in (
            "SELECT * FROM public.latest",
            "SELECT * FROM public.gateways",
            "SELECT * FROM public.rejections",
            "SELECT nextval('public.observation_ids')",
            "DELETE FROM grafana.rejections",
            "CREATE TABLE public.mine (a int)",
        ):
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)):
                await connection.execute(statement)


async def test_many_databases_make_the_role_at_once(cluster: str) -> None:
    await run(cluster, "DROP ROLE IF EXISTS citylab_grafana")
    async with database(cluster) as a, database(cluster) as b, database(cluster) as c, database(cluster) as d:
        await asyncio.gather(*map(migrate, (a, b, c, d)))

        for url in (a, b, c, d):
            granted = "SELECT has_table_privilege('citylab_grafana', 'grafana.latest', 'SELECT')"
            assert await run(url, granted) == [(True,)]
        settings = await run(
            a, "SELECT rolcanlogin, rolconfig::text FROM pg_roles WHERE rolname = 'citylab_grafana'"
        )
        assert settings[0][0] is False
        assert "statement_timeout=30s" in settings[0][1]


async def test_every_query_works_on_timescaledb_too() -> None:
    """Without a login: the role's password belongs to the whole cluster, which others use at the same time."""
    async with database(url_of("STORE")) as url:
        await migrate(url)
        await run(url, SEED)
        end = now() // 1_000
        async with (
            await psycopg.AsyncConnection.connect(url, autocommit=True) as connection,
            connection.transaction(force_rollback=True),
        ):
            await connection.execute("GRANT citylab_grafana TO CURRENT_USER")
            await connection.execute("SET LOCAL ROLE citylab_grafana")
            await connection.execute("SET LOCAL search_path = grafana")
            for sql in [variable.sql for variable in OVERVIEW.variables] + [
                panel.sql for panel in OVERVIEW.panels
            ]:
                filled = filled_in(sql, {"datastream": "1"})
                asked = grafana_standin.expanded(filled, start=end - 21_600_000, end=end, interval_ms=60_000)
                assert await (await connection.execute(asked.encode())).fetchall(), sql


@pytest.mark.skipif(
    "CITYLAB_TEST_GRAFANA_URL" not in os.environ, reason="CITYLAB_TEST_GRAFANA_URL names no Grafana"
)
async def test_a_real_grafana_takes_it_and_runs_every_panel(store: str) -> None:
    """It must reach this machine's loopback. What it had under our uids is replaced."""
    url = os.environ["CITYLAB_TEST_GRAFANA_URL"]
    token = os.environ.get("CITYLAB_TEST_GRAFANA_TOKEN", "")

    async def once() -> PushReport:
        return await push(
            url, token=token, store=StoreAddress.parse(store), password=PASSWORD, now_ms=now() // 1_000
        )

    first, second = await once(), await once()

    assert first.failed == []
    assert all(panel.rows for panel in first.panels), first.panels
    assert {second.folder, second.data_source, *(d.change for d in second.dashboards)} == {Change.UNCHANGED}
    assert Source("x").type == "grafana-postgresql-datasource"
