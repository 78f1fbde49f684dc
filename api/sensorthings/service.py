"""The SensorThings service as an ASGI application under `/v1.1`: bytes in, bytes out.

The database makes the JSON; what is done here for a request does not grow with the number of entities in its answer.
"""

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

import msgspec
import structlog

from api.sensorthings.errors import RequestError, body, message_of, not_found, status_of
from api.sensorthings.plans import Form, Plan, Plans
from api.sensorthings.requirements import conformance
from api.sensorthings.resource import Resource, Step, read_resource
from api.sensorthings.statements import Compiled, Compiler
from api.sensorthings.syntax import Query
from api.sensorthings.windows import EXTENT, Extent
from citylab.drafts import attach, read_draft
from citylab.entities import SETS, EntityType
from citylab.errors import CitylabError, Unavailable
from citylab.model import Micros
from citylab.policy import Visible, everything
from citylab.ports import EntityWrites, Store, Transaction
from citylab.times import now

ROOT = "/v1.1"
LARGEST_DOCUMENT = 16 << 20  # bytes
_EXTENT_SECONDS = 10
_ATTEMPTS = 10  # of a transaction that met another
_HOST = re.compile(rb"[A-Za-z0-9._~\-]+(?::\d{1,5})?|\[[0-9A-Fa-f:.]+\](?::\d{1,5})?")
_JSON = b"application/json"
_TEXT = b"text/plain;charset=utf-8"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

log = structlog.get_logger()


class Answer(NamedTuple):
    """A response."""

    status: int
    content: bytes = b""
    kind: bytes = _JSON
    headers: Headers = ()


class SensorThings:
    """Answers requests below `/v1.1`.

    public_url: the address that links begin with, without `/v1.1`; from the request where it is None.
    page: how many entities a page has when the request does not say.
    """

    def __init__(
        self,
        store: Store,
        writes: EntityWrites,
        *,
        public_url: str | None = None,
        page: int = 100,
        visible: Visible = everything,
        clock: Callable[[], Micros] = now,
    ) -> None:
        self._store = store
        self._writes = writes
        self._public = public_url.rstrip("/") if public_url else None
        self._compiler = Compiler(visible, page=page)
        self._plans = Plans(self._compiler)
        self._clock = clock
        self._extent: tuple[float, Extent] | None = None
        self._read_back = {t.name: self._reading(t) for t in SETS.values()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever goes wrong becomes an answer too."""
        method = scope["method"]
        try:
            answer = await self._answer(method, scope, receive)
        except CitylabError as error:
            answer = _refusal(error)
        except Exception:
            log.exception("a request failed", method=method, path=scope["path"])
            answer = Answer(500, body(500, "an error of this service, which its log describes"))
        await _send(answer, send, with_content=method != "HEAD")

    async def _answer(self, method: str, scope: Scope, receive: Receive) -> Answer:
        path = _path(scope)
        if method == "OPTIONS":
            return Answer(204, headers=_PREFLIGHT)
        if method in {"GET", "HEAD"}:
            base = self._base(scope)
            if not path.strip("/"):
                return Answer(200, landing_page(base))
            return await self._get(read_resource(path), scope["query_string"].decode("latin-1"), base)
        if method == "POST":
            resource = read_resource(path)
            return await self._post(resource, await _document(receive), self._base(scope))
        raise RequestError(405, f"{method} is not possible here")

    # Reading ----------------------------------------------------------------------------------------------------

    async def _get(self, resource: Resource, query_string: str, base: str) -> Answer:
        plan = self._plans.plan(resource, query_string)
        async with self._store.transaction(read_only=True) as transaction:
            rows = await self._fetch(transaction, plan.statement, _filled(plan.statement, resource.ids, base))
            if not rows and len(resource.steps) > 1:
                await self._explain_nothing(transaction, resource)
        match plan.form:
            case Form.COLLECTION:
                return _collection(rows[0], plan, resource, base)
            case Form.ENTITY if rows:
                return Answer(200, rows[0][0].encode())
            case Form.PROPERTY if rows:
                return _property(rows[0][0], resource)
        if resource.steps[-1].id is None and plan.form is Form.ENTITY:
            return Answer(204)  # a to-one relation that leads to nothing
        raise not_found(f"{_path_of(resource)} does not exist")

    async def _fetch(
        self, transaction: Transaction, statement: Compiled, parameters: dict[str, object]
    ) -> list[tuple[Any, ...]]:
        """Run a statement, in wider and wider windows until its page is whole."""
        if statement.window is None:
            return await transaction.fetch(statement.sql, parameters)
        rows: list[tuple[Any, ...]] = []
        for low, high in statement.window.windows(await self._extent_now(transaction)):
            rows = await transaction.fetch(statement.sql, parameters | {"from": low, "to": high})
            if rows[0][1] >= statement.window.rows - statement.window.skipped:
                break
        return rows

    async def _extent_now(self, transaction: Transaction) -> Extent:
        """Roughly where Observations are; what is some seconds old only makes a window too narrow or too wide."""
        moment = time.monotonic()
        if self._extent is None or moment - self._extent[0] > _EXTENT_SECONDS:
            (row,) = await transaction.fetch(EXTENT)
            self._extent = moment, Extent(*row)
        return self._extent[1]

    async def _explain_nothing(self, transaction: Transaction, resource: Resource) -> None:
        """Raise unless the entity before the last step exists."""
        statement = self._compiler.existence(resource.steps[:-1])
        ((exists, _),) = await transaction.fetch(statement.sql, _filled(statement, resource.ids, ""))
        if not exists:
            raise not_found(f"{_path_of(resource)} does not exist")

    # Creating ---------------------------------------------------------------------------------------------------

    async def _post(self, resource: Resource, document: bytes, base: str) -> Answer:
        step = resource.steps[-1]
        if step.single or resource.reference or resource.of_property is not None or resource.of_id:
            raise RequestError(405, f"entities are created at a set, which {_path_of(resource)} is not")
        for attempt in range(_ATTEMPTS):
            try:
                # Read anew each time: creating fills the draft in.
                draft = read_draft(step.entity_type, document, parent=step.relation)
                async with self._store.transaction() as transaction:
                    if step.relation is not None:
                        attach(draft, step.relation, await self._parent(transaction, resource))
                    own = await self._writes.create(transaction, draft, now=self._clock())
                    statement, single = self._read_back[step.entity_type.name]
                    rows = await transaction.fetch(statement.sql, _filled(statement, (own,), base))
                link = f"{base}{single.set_name}({own})"
                return Answer(201, rows[0][0].encode(), headers=((b"location", link.encode()),))
            except Unavailable as error:
                if error.retry_after or attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError

    async def _parent(self, transaction: Transaction, resource: Resource) -> int:
        statement = self._compiler.existence(resource.steps[:-1])
        ((exists, parent),) = await transaction.fetch(statement.sql, _filled(statement, resource.ids, ""))
        if not exists:
            raise not_found(f"{_path_of(resource)} does not exist")
        return int(parent)

    def _reading(self, entity_type: EntityType) -> tuple[Compiled, EntityType]:
        """The statement that reads an entity which was just written."""
        resource = Resource(f"{entity_type.set_name}()", (Step(entity_type, None, 0),), (0,))
        return self._compiler.entity(resource, Query()), entity_type

    def _base(self, scope: Scope) -> str:
        if self._public is not None:
            return f"{self._public}{ROOT}/"
        for name, value in scope["headers"]:
            if name == b"host" and _HOST.fullmatch(value):
                return f"{scope['scheme']}://{value.decode()}{ROOT}/"
        host, port = scope["server"]
        return f"{scope['scheme']}://{host}:{port}{ROOT}/"


def landing_page(base: str) -> bytes:
    """The sets, and which requirements hold (OGC 18-088 §9.2.1)."""
    return msgspec.json.encode(
        {
            "value": [{"name": name, "url": f"{base}{name}"} for name in SETS],
            "serverSettings": {"conformance": conformance()},
        }
    )


def _filled(statement: Compiled, ids: tuple[int, ...], base: str) -> dict[str, object]:
    """The parameters of a statement, with the ids of the path and the address of the service."""
    parameters = dict(statement.parameters)
    parameters["base"] = base
    for i, number in enumerate(ids):
        parameters[f"id{i}"] = str(number)
    return parameters


def _collection(row: tuple[Any, ...], plan: Plan, resource: Resource, base: str) -> Answer:
    entities, _, token, count, exists = row
    if not exists:
        raise not_found(f"{_path_of(resource)} does not exist")
    parts = [b"{"]
    if count is not None:
        parts.append(b'"@iot.count":%d,' % count)
    if token is not None:
        options = f"{plan.repeated}&" if plan.repeated else ""
        parts.append(f'"@iot.nextLink":"{base}{_path_of(resource)}?{options}$skiptoken={token}",'.encode())
    parts += [b'"value":[', (entities or "").encode(), b"]}"]
    return Answer(200, b"".join(parts))


def _property(value: str | None, resource: Resource) -> Answer:
    """A property (OGC 18-088 §9.2.4): 200 with null if null is a value of it, 204 if it is unset."""
    known = resource.of_property
    if value is None:
        if resource.members and not resource.value:
            raise not_found(f"{_path_of(resource)} does not exist")
        if resource.value or known is None or not known.nullable:
            return Answer(204)
        value = "null"
    if resource.value:
        return Answer(200, value.encode(), _TEXT)
    return Answer(200, b"{%s:%s}" % (msgspec.json.encode(resource.key), value.encode()))


def _path_of(resource: Resource) -> str:
    """The path with its ids, as links write it."""
    path = resource.shape
    for number in resource.ids:
        path = path.replace("()", f"({number})", 1)
    return path


def _path(scope: Scope) -> str:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.decode("latin-1").removeprefix(ROOT)


async def _document(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise RequestError(400, "the document was not received whole")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > LARGEST_DOCUMENT:
            raise RequestError(413, f"a document has at most {LARGEST_DOCUMENT} bytes")
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _refusal(error: CitylabError) -> Answer:
    status = status_of(error)
    headers: Headers = ()
    if isinstance(error, Unavailable):
        headers = ((b"retry-after", str(max(1, round(error.retry_after))).encode()),)
    if status == 405:
        headers = ((b"allow", b"GET, HEAD, OPTIONS, POST"),)
    return Answer(status, body(status, message_of(error)), headers=headers)


_OPEN: Headers = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"Location"),
)
_PREFLIGHT: Headers = (
    (b"access-control-allow-methods", b"GET, HEAD, OPTIONS"),
    (b"access-control-allow-headers", b"*"),
    (b"access-control-max-age", b"86400"),
)


async def _send(answer: Answer, send: Send, *, with_content: bool) -> None:
    headers = [*answer.headers, *_OPEN]
    if answer.status != 204:
        headers += [(b"content-type", answer.kind), (b"content-length", str(len(answer.content)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.content if with_content else b""})
