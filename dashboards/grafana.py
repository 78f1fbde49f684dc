"""Provisions Grafana through its HTTP API: a folder, the data source, the dashboards; then runs every panel once.

Grafana accepts a dashboard with nonsense in it, so only running the panels' queries shows that they work.
Seen on Grafana 12.3: an existing folder answers 412, an existing data source 409, identical content keeps a
dashboard's version, and `/api/ds/query` answers bad SQL with 400 and the text in `results.A.error`.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

import niquests
from grafana_client.api import AsyncGrafanaApi
from grafana_client.client import GrafanaException, GrafanaTimeoutError

from citylab.errors import CitylabError, ConfigurationError, Unavailable
from citylab.settings import redacted
from dashboards.overview import DASHBOARDS
from dashboards.panels import DATA_SOURCE_TYPE, Dashboard, Panel, Source, filled_in

FOLDER_UID = "citylab"
FOLDER_TITLE = "Citylab"
SOURCE_UID = "citylab-store"
SOURCE_NAME = "Citylab store"
ROLE = "citylab_grafana"
_TIMEOUT = 40.0  # longer than the role's statement time-out, so that the store's answer comes first
_WINDOW_MS = 6 * 3_600_000
_OLDEST_POSTGRESQL = 1500  # of the versions that Grafana's query editor distinguishes


class Refused(CitylabError):
    """Grafana answers, and will not do it: the message says what to change."""


class Change(StrEnum):
    """What a push did to something."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """How Grafana reaches the store."""

    host: str
    port: int
    database: str
    tls: str = "disable"

    @classmethod
    def parse(cls, text: str) -> "StoreAddress":
        """Read `host:port/database`, with or without `postgresql://user:password@` and `?sslmode=`.

        User and password are left out: Grafana has a role of its own. Raises `ConfigurationError`.
        """
        parts = urlsplit(text if "://" in text else f"postgresql://{text}")
        if "," in parts.netloc.rpartition("@")[2]:
            raise ConfigurationError(
                f"{redacted(text)} names several hosts, and Grafana takes one: set CITYLAB_GRAFANA_STORE_URL to"
                " host:port/database of an address that follows the primary, or of a standby"
            )
        try:
            port = parts.port or 5432
        except ValueError:
            port = 0
        database = unquote(parts.path.strip("/"))
        if not parts.hostname or not database or not port or "/" in database:
            raise ConfigurationError(
                f"{redacted(text)!r} is no address of a store for Grafana, such as 127.0.0.1:5432/citylab"
                " (CITYLAB_GRAFANA_STORE_URL)"
            )
        return cls(parts.hostname, port, database, parse_qs(parts.query).get("sslmode", ["disable"])[0])

    @property
    def netloc(self) -> str:
        """Host and port, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PanelResult:
    """One panel's query, run once. `error` is None when it worked; a panel without data works too."""

    dashboard: str
    panel: str
    rows: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Pushed:
    """One dashboard, and where it is."""

    title: str
    url: str
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class PushReport:
    """What a push found and did."""

    grafana: str
    version: str
    folder: Change
    data_source: Change
    dashboards: Sequence[Pushed]
    panels: Sequence[PanelResult]

    @property
    def failed(self) -> Sequence[PanelResult]:
        """The panels whose query does not work."""
        return [panel for panel in self.panels if panel.error is not None]

    def lines(self) -> list[str]:
        """The report for a person."""
        lines = [
            f"Grafana {self.version} at {self.grafana}",
            f"  folder {FOLDER_TITLE}: {self.folder}",
            f"  data source {SOURCE_NAME}: {self.data_source}",
        ]
        lines += [f"  dashboard {pushed.title}: {pushed.change}, {pushed.url}" for pushed in self.dashboards]
        lines.append(f"  {len(self.panels) - len(self.failed)} of {len(self.panels)} panels work")
        lines += [f"  {p.dashboard} / {p.panel}: {p.error}" for p in self.failed]
        return lines

    def json(self) -> dict[str, Any]:
        """The report for a machine."""
        return {
            "grafana": self.grafana,
            "version": self.version,
            "folder": str(self.folder),
            "data_source": str(self.data_source),
            "dashboards": [
                {"title": pushed.title, "url": pushed.url, "change": str(pushed.change)}
                for pushed in self.dashboards
            ],
            "panels": [
                {"dashboard": p.dashboard, "panel": p.panel, "rows": p.rows, "error": p.error}
                for p in self.panels
            ],
        }


async def push(
    grafana_url: str,
    *,
    token: str = "",
    store: StoreAddress,
    password: str,
    now_ms: int,
    dashboards: Sequence[Dashboard] = DASHBOARDS,
) -> PushReport:
    """Provision Grafana and run every panel once; doing it again changes nothing.

    grafana_url: with user and password, unless `token` is one of a service account. password: the role's, which
    `citylab migrate` has set. now_ms: ms since the epoch, the end of the time range of the panels' queries.
    Raises `ConfigurationError` for an address that is none, `Unavailable` when Grafana does not answer, `Refused`
    when it answers and will not.
    """
    address = _shown(grafana_url)
    async with _connected(grafana_url, token) as api:
        version = await _version(api, address)
        folder = await _push_folder(api, address)
        source = await _push_source(api, address, store, password, now_ms)
        pushed = [await _push_dashboard(api, address, dashboard) for dashboard in dashboards]
        panels = [
            result
            for dashboard in dashboards
            for result in await _try_panels(api, address, dashboard, now_ms)
        ]
    return PushReport(
        grafana=address, version=version, folder=folder, data_source=source, dashboards=pushed, panels=panels
    )


@asynccontextmanager
async def _connected(url: str, token: str) -> AsyncIterator[Any]:
    """A client for the address, which keeps a path prefix and takes user and password unquoted from it."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigurationError(
            f"CITYLAB_GRAFANA_URL={redacted(url)!r} is no address such as http://admin:password@127.0.0.1:3000"
        )
    credential: Any = token or None
    if not token and parts.username:
        credential = (unquote(parts.username), unquote(parts.password or ""))
    if credential is None:
        raise ConfigurationError(
            "Grafana needs a credential: user and password in CITYLAB_GRAFANA_URL, or CITYLAB_GRAFANA_TOKEN"
        )
    path = parts.path.rstrip("/") + "/"  # the client puts `api` directly behind it
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, parts.query, ""))
    connect: Any = AsyncGrafanaApi.from_url  # the package ships no types
    api = connect(bare, credential=credential, timeout=_TIMEOUT)
    try:
        yield api
    finally:
        await api.client.s.close()


@contextmanager
def _explained(address: str, what: str) -> Iterator[None]:
    """Turn the client's errors into sentences."""
    try:
        yield
    except GrafanaTimeoutError as error:
        raise Unavailable("dashboard server", f"Grafana at {address} took too long to {what}") from error
    except GrafanaException as error:
        raise _sentence(error, address, what) from error
    except (niquests.exceptions.RequestException, OSError) as error:
        raise Unavailable(
            "dashboard server",
            f"no connection to Grafana at {address}. Is it running there? (CITYLAB_GRAFANA_URL)",
        ) from error


def _sentence(error: Any, address: str, what: str) -> CitylabError:
    said = error.response.get("message", "") if isinstance(error.response, dict) else ""
    said = f": {said}" if said else ""
    match error.status_code:
        case 401:
            return Refused(
                f"Grafana at {address} does not accept the user and password, or the token{said}."
                " See CITYLAB_GRAFANA_URL, CITYLAB_GRAFANA_TOKEN"
            )
        case 403:
            return Refused(
                f"Grafana at {address} does not allow this account to {what}{said}."
                " Give it the role Admin: data sources need it"
            )
        case 404:
            return Refused(
                f"Grafana at {address} knows no way to {what}{said}."
                " Is a path missing in CITYLAB_GRAFANA_URL? Grafana 10 or newer is needed"
            )
        case status if status >= 500:
            return Unavailable(
                "dashboard server", f"Grafana at {address} failed to {what} (HTTP {status}){said}"
            )
        case status:
            return Refused(f"Grafana at {address} refused to {what} (HTTP {status}){said}")


async def _version(api: Any, address: str) -> str:
    with _explained(address, "say how it is"):
        health = await api.client.GET("/health")
    if not isinstance(health, dict) or "database" not in health:
        raise Refused(f"what answers at {address} is no Grafana. See CITYLAB_GRAFANA_URL")
    return str(health.get("version", "of unknown version"))


async def _push_folder(api: Any, address: str) -> Change:
    with _explained(address, "create folders"):
        try:
            await api.folder.create_folder(FOLDER_TITLE, uid=FOLDER_UID)
        except GrafanaException as error:
            if error.status_code in {409, 412}:  # it is there; people may have given it another title
                return Change.UNCHANGED
            raise
    return Change.CREATED


async def _push_source(api: Any, address: str, store: StoreAddress, password: str, now_ms: int) -> Change:
    wanted = _source_json(store)
    secret = {"secureJsonData": {"password": password}}
    with _explained(address, "create data sources"):
        try:
            await api.datasource.create_datasource(wanted | secret)
            return Change.CREATED
        except GrafanaException as error:
            if error.status_code != 409:
                raise
    with _explained(address, "change data sources"):
        try:
            present = await api.datasource.get_datasource_by_uid(SOURCE_UID)
        except GrafanaException as error:
            if error.status_code != 404:
                raise
            raise Refused(
                f"Grafana at {address} has another data source with the name {SOURCE_NAME!r}: rename that one"
            ) from error
        # Grafana does not tell the password it has; whether it still opens the store shows when it is used.
        if _holds(present, wanted) and await _answers(api, now_ms):
            return Change.UNCHANGED
        if present.get("readOnly"):
            raise Refused(
                f"Grafana at {address} has the data source {SOURCE_NAME!r} from a file, and it is not the one that"
                " is wanted: change it there"
            )
        await api.datasource.update_datasource_by_uid(SOURCE_UID, wanted | secret)
    return Change.UPDATED


def _source_json(store: StoreAddress) -> dict[str, Any]:
    return {
        "uid": SOURCE_UID,
        "name": SOURCE_NAME,
        "type": DATA_SOURCE_TYPE,
        "access": "proxy",
        "url": store.netloc,
        "user": ROLE,
        "isDefault": False,
        "jsonData": {
            "database": store.database,
            "sslmode": store.tls,
            "postgresVersion": _OLDEST_POSTGRESQL,
            # time_bucket lies outside the schema that the role sees; what Grafana uses instead works everywhere.
            "timescaledb": False,
            "maxOpenConns": 10,
        },
    }


def _holds(present: Any, wanted: Any) -> bool:
    """Whether everything wanted is there; Grafana adds things of its own."""
    if isinstance(wanted, Mapping):
        return isinstance(present, Mapping) and all(_holds(present.get(key), wanted[key]) for key in wanted)
    return bool(present == wanted)


async def _answers(api: Any, now_ms: int) -> bool:
    source = Source(SOURCE_UID)
    probe = {"refId": "A", "datasource": source.json(), "format": "table", "rawSql": "SELECT 1 AS one"}
    return (await _run(api, probe, now_ms)).error is None


async def _push_dashboard(api: Any, address: str, dashboard: Dashboard) -> Pushed:
    with _explained(address, "save dashboards"):
        before = None
        try:
            before = (await api.dashboard.get_dashboard(dashboard.uid))["dashboard"].get("version")
        except GrafanaException as error:
            if error.status_code != 404:
                raise
        saved = await api.dashboard.update_dashboard(
            {
                "dashboard": dashboard.json(Source(SOURCE_UID)),
                "folderUid": FOLDER_UID,
                "overwrite": True,
                "message": "citylab dashboards push",
            }
        )
    change = Change.CREATED if before is None else Change.UPDATED
    if before is not None and saved.get("version") == before:
        change = Change.UNCHANGED
    return Pushed(dashboard.title, f"{address.rstrip('/')}/d/{dashboard.uid}", change)


@dataclass(frozen=True, slots=True)
class _Answer:
    """The columns of a query's answer, each with its values, or what was wrong."""

    columns: Mapping[str, Sequence[Any]]
    rows: int
    error: str | None = None


async def _try_panels(api: Any, address: str, dashboard: Dashboard, now_ms: int) -> list[PanelResult]:
    source = Source(SOURCE_UID)
    with _explained(address, "run queries"):
        chosen: dict[str, str] = {}
        results = []
        for variable in dashboard.variables:
            answer = await _run(api, variable.query(source), now_ms)
            values = answer.columns.get("__value") or [""]
            chosen[variable.name] = str(values[0])
            if answer.error:
                results.append(PanelResult(dashboard.title, f"variable {variable.label}", 0, answer.error))
        for panel in dashboard.panels:
            answer = await _run(api, _panel_query(panel, source, chosen), now_ms)
            results.append(PanelResult(dashboard.title, panel.title, answer.rows, answer.error))
    return results


def _panel_query(panel: Panel, source: Source, chosen: Mapping[str, str]) -> dict[str, Any]:
    query = panel.query(source)
    return query | {"rawSql": filled_in(panel.sql, chosen), "intervalMs": 60_000, "maxDataPoints": 500}


async def _run(api: Any, query: dict[str, Any], now_ms: int) -> _Answer:
    """Run one query as a panel does. Bad SQL and a store that is out of reach are an answer's error."""
    body = {"queries": [query], "from": str(now_ms - _WINDOW_MS), "to": str(now_ms)}
    try:
        response = await api.client.POST("/ds/query", json=body)
    except GrafanaTimeoutError:
        return _Answer({}, 0, "no answer in time")
    except GrafanaException as error:
        if error.status_code in {401, 403, 404}:
            raise
        response = error.response
    result = response.get("results", {}).get("A", {}) if isinstance(response, dict) else {}
    problem = result.get("error") or (response.get("message") if "frames" not in result else None)
    if problem or "frames" not in result:
        return _Answer({}, 0, _helpful(str(problem or "Grafana gave no answer that can be read")))
    columns: dict[str, Sequence[Any]] = {}
    rows = 0
    for frame in result["frames"]:
        values = frame.get("data", {}).get("values", [])
        rows += len(values[0]) if values else 0
        for field, column in zip(frame.get("schema", {}).get("fields", []), values, strict=False):
            columns.setdefault(field.get("name", ""), column)
    return _Answer(columns, rows)


def _helpful(problem: str) -> str:
    """What Grafana said of a query, and what to do where that is known."""
    lower = problem.lower()
    if "password authentication" in lower or "not permitted to log in" in lower:
        return (
            f"{problem} -- the store has another password for {ROLE}: run `citylab migrate`, then push again"
        )
    if any(words in lower for words in ("refused", "no such host", "timeout", "unreachable", "i/o")):
        return f"{problem} -- Grafana cannot reach the store: set CITYLAB_GRAFANA_STORE_URL to the address it sees"
    if "does not exist" in lower:
        return f"{problem} -- is the store's schema up to date? (citylab migrate)"
    return problem


def _shown(url: str) -> str:
    """The address without what is secret."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
