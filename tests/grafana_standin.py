"""Grafana's HTTP API as far as a push uses it, with the behaviour that was seen on a real one (12.3).

Queries run for real: on PostgreSQL, with the address, role and password of the data source that was pushed, and with
Grafana's macros expanded. What it does not check is what only a page of Grafana's can: how panels look.
"""

import json
import math
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

_MACRO = re.compile(r"\$__(\w+)\(([^)]*)\)")
_STEP = re.compile(r"(\d+)(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class BadQuery(Exception):
    """What `/api/ds/query` answers with 400."""


@dataclass
class GrafanaStandin:
    """The state of a Grafana, which a test may look at and change."""

    url: str = ""
    users: dict[str, str] = field(default_factory=lambda: {"admin": "s/cret@1"})
    tokens: set[str] = field(default_factory=set)
    forbidden: set[str] = field(
        default_factory=set
    )  # beginnings of paths that the account may not POST or PUT to
    absent: set[str] = field(default_factory=set)  # beginnings of paths that this version does not have
    folders: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    passwords: dict[str, str] = field(default_factory=dict)
    dashboards: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    in_folder: dict[str, str] = field(default_factory=dict)
    queries: list[str] = field(default_factory=list)
    writes: int = 0  # that changed something

    def with_credential(self, user: str = "admin", password: str | None = None) -> str:
        """The address with user and password, quoted."""
        from urllib.parse import quote

        secret = quote(self.users[user] if password is None else password, safe="")
        return self.url.replace("http://", f"http://{user}:{secret}@")

    def state(self) -> str:
        """Everything that a push may change, as text."""
        return json.dumps(
            [self.folders, self.sources, self.passwords, self.dashboards, self.versions], sort_keys=True
        )


@contextmanager
def running(path: str = "") -> Iterator[GrafanaStandin]:
    """A stand-in on a free port of loopback; `path` is where a proxy would put it."""
    standin = GrafanaStandin()
    whole = FastAPI()
    whole.mount(path or "/", application(standin))
    configuration = uvicorn.Config(
        whole, host="127.0.0.1", port=0, log_level="error", lifespan="off", loop="asyncio"
    )
    server = uvicorn.Server(configuration)
    started = threading.Event()
    startup = server.startup

    async def startup_and_say(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = startup_and_say  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(10)
        port = server.servers[0].sockets[0].getsockname()[1]
        standin.url = f"http://127.0.0.1:{port}{path}"
        yield standin
    finally:
        server.should_exit = True
        thread.join(10)


def application(standin: GrafanaStandin) -> FastAPI:
    """The routes."""
    app = FastAPI()
    for part in (_access, _folders, _sources, _dashboards, _queries):
        part(app, standin)
    return app


def _access(app: FastAPI, standin: GrafanaStandin) -> None:

    @app.middleware("http")
    async def permissions(request: Request, call_next: Any) -> Response:
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        if any(path.startswith(start) for start in standin.absent):
            return _message(404, "Not found")
        if path != "/api/health" and not _known(standin, request.headers.get("authorization", "")):
            return _message(401, "Invalid username or password")
        if request.method in {"POST", "PUT"} and any(path.startswith(start) for start in standin.forbidden):
            return _message(403, "You'll need additional permissions to perform this action.")
        answer: Response = await call_next(request)
        return answer

    @app.get("/api/health")
    def health() -> dict[str, str]:
        return {"commit": "standin", "database": "ok", "version": "12.3.0"}


def _folders(app: FastAPI, standin: GrafanaStandin) -> None:
    @app.post("/api/folders")
    async def create_folder(request: Request) -> Response:
        body = await request.json()
        if body["uid"] in standin.folders:
            return _message(412, "the folder has been changed by someone else")
        standin.writes += 1
        standin.folders[body["uid"]] = {"uid": body["uid"], "title": body["title"], "version": 1}
        return JSONResponse(standin.folders[body["uid"]])


def _sources(app: FastAPI, standin: GrafanaStandin) -> None:
    @app.post("/api/datasources")
    async def create_source(request: Request) -> Response:
        body = await request.json()
        if body["uid"] in standin.sources or body["name"] in {s["name"] for s in standin.sources.values()}:
            return _message(409, "data source with the same name already exists")
        _keep_source(standin, body, version=1)
        return JSONResponse({"message": "Datasource added", "datasource": standin.sources[body["uid"]]})

    @app.get("/api/datasources/uid/{uid}")
    def get_source(uid: str) -> Response:
        if uid not in standin.sources:
            return _message(404, "Data source not found")
        return JSONResponse(standin.sources[uid])

    @app.put("/api/datasources/uid/{uid}")
    async def put_source(uid: str, request: Request) -> Response:
        if uid not in standin.sources:
            return _message(404, "Data source not found")
        _keep_source(standin, await request.json(), version=standin.sources[uid]["version"] + 1)
        return JSONResponse({"message": "Datasource updated", "datasource": standin.sources[uid]})


def _dashboards(app: FastAPI, standin: GrafanaStandin) -> None:
    @app.get("/api/dashboards/uid/{uid}")
    def get_dashboard(uid: str) -> Response:
        if uid not in standin.dashboards:
            return _message(404, "Dashboard not found")
        return JSONResponse(
            {
                "dashboard": standin.dashboards[uid] | {"version": standin.versions[uid]},
                "meta": {"folderUid": standin.in_folder[uid]},
            }
        )

    @app.post("/api/dashboards/db")
    async def save_dashboard(request: Request) -> Response:
        body = await request.json()
        model, uid = body["dashboard"], body["dashboard"]["uid"]
        if body["folderUid"] not in standin.folders:
            return _message(404, "folder not found")
        if uid in standin.dashboards and not body["overwrite"]:
            return _message(412, "A dashboard with the same uid already exists")
        if standin.dashboards.get(uid) != model:  # identical content keeps its version
            standin.writes += 1
            standin.dashboards[uid], standin.in_folder[uid] = model, body["folderUid"]
            standin.versions[uid] = standin.versions.get(uid, 0) + 1
        return JSONResponse(
            {"uid": uid, "url": f"/d/{uid}/x", "version": standin.versions[uid], "status": "success"}
        )


def _queries(app: FastAPI, standin: GrafanaStandin) -> None:
    @app.post("/api/ds/query")
    async def query(request: Request) -> Response:
        body = await request.json()
        (asked,) = body["queries"]
        source = standin.sources.get(asked["datasource"]["uid"])
        if source is None:
            return _message(404, "data source not found")
        try:
            frame = await _frame(standin, source, asked, int(body["from"]), int(body["to"]))
        except BadQuery as error:
            result = {"error": str(error), "errorSource": "downstream", "status": 400}
            return JSONResponse({"results": {asked["refId"]: result}}, status_code=400)
        return JSONResponse({"results": {asked["refId"]: {"status": 200, "frames": [frame]}}})


def expanded(sql: str, *, start: int, end: int, interval_ms: int) -> str:
    """Grafana's macros of PostgreSQL, as its back end expands them. start and end in ms since the epoch."""
    sql = sql.replace("$__interval_ms", str(interval_ms)).replace("$__interval", f"{interval_ms // 1000}s")

    def one(match: re.Match[str]) -> str:
        name, arguments = match[1], [part.strip() for part in match[2].split(",")]
        column = arguments[0]
        match name:
            case "timeFilter":
                return f"{column} BETWEEN '{_instant(start)}' AND '{_instant(end)}'"
            case "timeFrom":
                return f"'{_instant(start)}'"
            case "timeTo":
                return f"'{_instant(end)}'"
            case "timeGroup" | "timeGroupAlias":
                step = _STEP.fullmatch(arguments[1].strip("'"))
                if not step:
                    raise BadQuery(f"error parsing interval {arguments[1]}")
                seconds = int(step[1]) * _SECONDS[step[2]]
                alias = ' AS "time"' if name == "timeGroupAlias" else ""
                return f"floor(extract(epoch from {column})/{seconds:g})*{seconds:g}{alias}"
        raise BadQuery(f"unknown macro {name!r}")

    return _MACRO.sub(one, sql)


async def _frame(
    standin: GrafanaStandin, source: Mapping[str, Any], asked: Mapping[str, Any], start: int, end: int
) -> dict[str, Any]:
    sql = expanded(asked["rawSql"], start=start, end=end, interval_ms=asked.get("intervalMs", 1000))
    standin.queries.append(sql)
    host, _, port = source["url"].rpartition(":")
    try:
        async with (
            await psycopg.AsyncConnection.connect(
                host=host.strip("[]"),
                port=int(port),
                user=source["user"],
                password=standin.passwords[source["uid"]],
                dbname=source["jsonData"]["database"],
                sslmode=source["jsonData"]["sslmode"],
                connect_timeout=5,
                autocommit=True,
            ) as connection,
            connection.cursor() as cursor,
        ):
            # Grafana sends plain text, not a prepared statement.
            await cursor.execute(sql.encode())
            names = [column.name for column in cursor.description or ()]
            rows = await cursor.fetchall()
    except psycopg.Error as error:
        raise BadQuery(f"db query error: {error}") from error
    if asked["format"] == "time_series":
        _check_series(names, rows)
    columns = [[_plain(value) for value in column] for column in zip(*rows, strict=True)] or [
        [] for _ in names
    ]
    return {
        "schema": {"refId": asked["refId"], "fields": [{"name": name} for name in names]},
        "data": {"values": columns},
    }


def _check_series(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    """What Grafana asks of rows that are to become series."""
    if "time" not in names:
        raise BadQuery("db has no time column: no time column found")
    times = [row[names.index("time")] for row in rows]
    if times != sorted(times):
        raise BadQuery("failed to convert long to wide series: long series must be sorted ascending by time")


def _keep_source(standin: GrafanaStandin, body: dict[str, Any], *, version: int) -> None:
    standin.writes += 1
    secret = body.pop("secureJsonData", {})
    if "password" in secret:
        standin.passwords[body["uid"]] = secret["password"]
    standin.sources[body["uid"]] = body | {
        "id": 1,
        "orgId": 1,
        "version": version,
        "readOnly": False,
        "secureJsonFields": dict.fromkeys(secret, True),
    }


def _known(standin: GrafanaStandin, authorization: str) -> bool:
    import base64

    kind, _, value = authorization.partition(" ")
    if kind == "Bearer":
        return value in standin.tokens
    if kind == "Basic":
        user, _, password = base64.b64decode(value).decode().partition(":")
        return (
            secrets.compare_digest(standin.users.get(user, "").encode(), password.encode())
            and user in standin.users
        )
    return False


def _message(status: int, text: str) -> JSONResponse:
    return JSONResponse({"message": text}, status_code=status)


def _instant(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return round(value.timestamp() * 1000)
    if isinstance(value, Decimal | float):
        return float(value) if math.isfinite(value) else None
    return value
