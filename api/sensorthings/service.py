"""The SensorThings service as an ASGI application under `/v1.1`: bytes in, bytes out.

The database makes the JSON; what is done here for a request does not grow with the number of entities in its answer.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
import structlog

from api.sensorthings.batch_answers import answer_batch
from api.sensorthings.bulk import creation_of_rows
from api.sensorthings.changing import check_conditions, etag, is_known, read_change, read_deletion
from api.sensorthings.errors import RequestError, body, message_of, not_found, status_of
from api.sensorthings.gathering import Gathering, simple_draft
from api.sensorthings.geometries import StoredGeometries
from api.sensorthings.plans import Form, Plan, Plans
from api.sensorthings.requests import (
    TEXT,
    Answer,
    Headers,
    Receive,
    Request,
    Scope,
    Send,
    receive_request,
    send_answer,
)
from api.sensorthings.requirements import server_settings
from api.sensorthings.resource import Resource, Step, read_resource
from api.sensorthings.statements import Compiled, Compiler
from api.sensorthings.syntax import Query
from api.sensorthings.windows import EXTENT, Extent
from citylab.drafts import attach, read_draft
from citylab.entities import ENTITY_TYPES, EntityType, EntityTypes
from citylab.errors import CitylabError, Unavailable
from citylab.model import Micros
from citylab.policy import Visible, everything
from citylab.ports import EntityWrites, Store, Transaction
from citylab.times import now

_EXTENT_SECONDS = 10
_MOST_EXPORTS = 4  # at once: each holds a connection for as long as its client reads
_ROWS_A_PIECE = 1_000
_ATTEMPTS = 10  # of a transaction that met another

log = structlog.get_logger()


class _Export(NamedTuple):
    """How a stream of entities is written. head: empty where it is the plan's own."""

    kind: bytes
    head: bytes
    between: str
    tail: bytes


_EXPORTS = {
    Form.CSV: _Export(b"text/csv;charset=utf-8;header=present", b"", "", b""),
    Form.GEOJSON: _Export(b"application/geo+json", b'{"type":"FeatureCollection","features":[', ",", b"]}"),
}


class SensorThings:
    """Answers requests below `/v1.1`.

    public_url: the address that links begin with, without `/v1.1`; from the request where it is None.
    page: how many entities a page has when the request does not say; settings: the landing page's `serverSettings`;
    types: the entities that it offers.
    """

    def __init__(
        self,
        store: Store,
        writes: EntityWrites,
        *,
        public_url: str | None = None,
        page: int = 100,
        settings: Mapping[str, Any] | None = None,
        visible: Visible = everything,
        types: EntityTypes = ENTITY_TYPES,
        clock: Callable[[], Micros] = now,
    ) -> None:
        self._store = store
        self._writes = writes
        self._public = public_url.rstrip("/") if public_url else None
        self._settings = msgspec.Raw(msgspec.json.encode(settings or server_settings(types=types)))
        self._types = types
        self._compiler = Compiler(visible, page=page, types=types)
        self._plans = Plans(self._compiler)
        self._clock = clock
        self._extent: tuple[float, Extent] | None = None
        self._gathering = Gathering(store, self._compiler)
        self._exports = asyncio.Semaphore(_MOST_EXPORTS)
        self._geometries = StoredGeometries()
        self._read_back = {t.name: self._reading(t) for t in types.values()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever goes wrong becomes an answer too."""
        method = scope["method"]
        try:
            answer = await self.answer(await receive_request(scope, receive, self._public))
        except CitylabError as error:
            answer = refusal(error)
        except Exception:
            log.exception("a request failed", method=method, path=scope["path"])
            answer = Answer(500, body(500, "an error of this service, which its log describes"))
        await send_answer(answer, receive, send, with_content=method != "HEAD")

    async def answer(self, request: Request) -> Answer:
        """Answer a request, by HTTP or inside a batch. Raises `CitylabError` for what cannot be answered."""
        path = request.path
        if request.method == "OPTIONS":
            return Answer(204, headers=_PREFLIGHT)
        if request.method in {"GET", "HEAD"}:
            if not path.strip("/"):
                return Answer(200, landing_page(request.base, self._types, self._settings))
            return await self._get(read_resource(path, self._types), request)
        if request.method == "POST":
            action = unquote(path).strip("/")
            if action == "$batch":
                return await answer_batch(request, self._store, self.answer, refusal)
            if action == "CreateObservations":
                creation = await creation_of_rows(request, self._writes, self._clock())
                return await self._write(request, creation)
            return await self._post(read_resource(path, self._types), request)
        if request.method in {"PATCH", "PUT"}:
            return await self._change(read_resource(path, self._types), request)
        if request.method == "DELETE":
            return await self._delete(read_resource(path, self._types), request)
        raise RequestError(405, f"{request.method} is not possible here")

    @asynccontextmanager
    async def _to_read(self, request: Request) -> AsyncIterator[Transaction]:
        """A transaction to read in: the change set's, which sees what the set wrote, or one of the request's own."""
        if request.transaction is not None:
            yield request.transaction
            return
        async with self._store.transaction(read_only=True) as transaction:
            yield transaction

    async def _write(self, request: Request, work: Callable[[Transaction], Awaitable[Answer]]) -> Answer:
        """Do a request's work in one transaction, and anew when it met another; a change set does that as a whole."""
        if request.transaction is not None:
            return await work(request.transaction)
        for attempt in range(_ATTEMPTS):
            try:
                async with self._store.transaction() as transaction:
                    return await work(transaction)
            except Unavailable as error:
                if error.retry_after or attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError

    # Reading ----------------------------------------------------------------------------------------------------

    async def _get(self, resource: Resource, request: Request) -> Answer:
        plan = self._plans.plan(resource, request.query)
        if plan.form in _EXPORTS:
            return await self._export(plan, resource, request)
        base = request.base
        async with self._to_read(request) as transaction:
            rows = await self._fetch(transaction, plan.statement, _filled(plan.statement, resource.ids, base))
            if not rows and len(resource.steps) > 1:
                await self._explain_nothing(transaction, resource)
        match plan.form:
            case Form.COLLECTION:
                return _collection(rows[0], plan, resource, base)
            case Form.ENTITY if rows:
                return _entity(rows[0], resource.entity_type, request)
            case Form.PROPERTY if rows:
                return _property(rows[0], resource)
        if resource.steps[-1].id is None and plan.form is Form.ENTITY:
            return Answer(204)  # a to-one relation that leads to nothing
        raise not_found(f"{_path_of(resource)} does not exist")

    async def _export(self, plan: Plan, resource: Resource, request: Request) -> Answer:
        """Everything that is found, as a stream; it begins when the first rows are there, so that a refusal is one."""
        if self._exports.locked():
            raise RequestError(503, f"{_MOST_EXPORTS} exports are running; try again when one has ended")
        pieces = self._pieces(plan, resource, request)
        return Answer(200, await anext(pieces), _EXPORTS[plan.form].kind, stream=pieces)

    async def _pieces(self, plan: Plan, resource: Resource, request: Request) -> AsyncGenerator[bytes]:
        export = _EXPORTS[plan.form]
        statement = plan.statement
        head = export.head or plan.header
        async with AsyncExitStack() as opened:
            await opened.enter_async_context(self._exports)
            transaction = request.transaction
            if transaction is None:
                transaction = await opened.enter_async_context(self._store.transaction())
            parameters = _filled(statement, resource.ids, request.base)
            parameters = await self._geometries.fill(transaction, parameters)
            found = await opened.enter_async_context(
                aclosing(transaction.stream(statement.sql, parameters, size=_ROWS_A_PIECE))
            )
            between = ""
            async for rows in found:
                yield head + (between + export.between.join(row[0] for row in rows)).encode()
                head, between = b"", export.between
            if head and len(resource.steps) > 1:
                await self._explain_nothing(transaction, resource)
            yield head + export.tail

    async def _fetch(
        self, transaction: Transaction, statement: Compiled, parameters: dict[str, object]
    ) -> list[tuple[Any, ...]]:
        """Run a statement, in wider and wider windows until its page is whole."""
        parameters = await self._geometries.fill(transaction, parameters)
        window = statement.window
        if statement.first:
            instant = {} if window is None else {"from": window.instant}
            rows = await transaction.fetch(statement.first, parameters | instant)
            if rows[0][1] >= statement.wanted:
                return rows
        if window is None:
            return await transaction.fetch(statement.sql, parameters)
        rows = []
        for low, high in window.windows(await self._extent_now(transaction)):
            rows = await transaction.fetch(statement.sql, parameters | {"from": low, "to": high})
            if rows[0][1] >= window.rows - window.skipped:
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

    async def _post(self, resource: Resource, request: Request) -> Answer:
        step = resource.steps[-1]
        if step.single or not resource.whole:
            raise RequestError(405, f"entities are created at a set, which {_path_of(resource)} is not")

        def answer(own: int, json: str, tag: str) -> Answer:
            link = f"{request.base}{step.entity_type.set_name}({own})"
            return Answer(201, json.encode(), headers=((b"location", link.encode()), *etag(tag)))

        if request.transaction is None and (simple := simple_draft(resource, request.body)):
            created = await self._gathering.create(simple, request.base, now=self._clock())
            if created is not None:
                return answer(*created)
            # Refused: the ordinary way says why.

        async def create(transaction: Transaction) -> Answer:
            parent = 0
            if step.relation is not None:
                parent = await self._existing(transaction, resource, resource.steps[:-1])
            # Read anew each time: creating fills the draft in.
            draft = read_draft(step.entity_type, request.body, parent=step.relation, types=self._types)
            if step.relation is not None:
                attach(draft, step.relation, parent)
            own = await self._writes.create(transaction, draft, now=self._clock())
            return answer(own, *await self._written(transaction, step.entity_type, own, request))

        return await self._write(request, create)

    async def _existing(self, transaction: Transaction, resource: Resource, steps: Sequence[Step]) -> int:
        """The id of the entity that steps of a path lead to."""
        statement = self._compiler.existence(steps)
        ((exists, own),) = await transaction.fetch(statement.sql, _filled(statement, resource.ids, ""))
        if not exists:
            raise not_found(f"{_path_of(resource)} does not exist")
        return int(own)

    async def _written(
        self, transaction: Transaction, entity_type: EntityType, own: int, request: Request
    ) -> tuple[str, str]:
        """The JSON of an entity and its tag, as they are in the transaction."""
        statement = self._read_back[entity_type.name]
        ((json, tag),) = await transaction.fetch(statement.sql, _filled(statement, (own,), request.base))
        return json, tag

    def _reading(self, entity_type: EntityType) -> Compiled:
        """The statement that reads an entity which was just written."""
        resource = Resource(f"{entity_type.set_name}()", (Step(entity_type, None, 0),), (0,))
        return self._compiler.entity(resource, Query())

    # Changing and deleting --------------------------------------------------------------------------------------

    async def _change(self, resource: Resource, request: Request) -> Answer:
        """PATCH and PUT (OGC 18-088 §10.3)."""
        entity_type = resource.entity_type
        if not resource.steps[-1].single or not resource.whole:
            raise RequestError(405, f"one entity is changed at a time, which {_path_of(resource)} is not")

        async def change(transaction: Transaction) -> Answer:
            await transaction.lock_catalogue()
            own = await self._existing(transaction, resource, resource.steps)
            json, tag = await self._written(transaction, entity_type, own, request)
            check_conditions(request, tag)
            changes = read_change(request, entity_type, json)
            await transaction.update(entity_type, own, changes, now=self._clock())
            json, tag = await self._written(transaction, entity_type, own, request)
            return Answer(200, json.encode(), headers=etag(tag))

        return await self._write(request, change)

    async def _delete(self, resource: Resource, request: Request) -> Answer:
        """DELETE of an entity (OGC 18-088 §10.4), or of what a filter matches in a collection."""
        entity_type = resource.entity_type
        if not resource.whole:
            raise RequestError(405, f"{_path_of(resource)} is no entity, which is what can be deleted")
        single = resource.steps[-1].single
        statement = self._compiler.matching(resource, Query() if single else read_deletion(request.query))

        async def delete(transaction: Transaction) -> Answer:
            await transaction.lock_catalogue()
            if single:
                own = await self._existing(transaction, resource, resource.steps)
                _, tag = await self._written(transaction, entity_type, own, request)
                check_conditions(request, tag)
            elif len(resource.steps) > 1:
                await self._existing(transaction, resource, resource.steps[:-1])
            parameters = await self._geometries.fill(
                transaction, _filled(statement, resource.ids, request.base)
            )
            await transaction.delete(entity_type, statement.sql, parameters)
            return Answer(200)

        return await self._write(request, delete)


def landing_page(base: str, types: EntityTypes, settings: msgspec.Raw) -> bytes:
    """The sets, and which requirements hold (OGC 18-088 §9.2.1). settings: JSON of `serverSettings`."""
    sets = [{"name": t.set_name, "url": f"{base}{t.set_name}"} for t in types.values()]
    return msgspec.json.encode({"value": sets, "serverSettings": settings})


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


def _entity(row: tuple[Any, ...], entity_type: EntityType, request: Request) -> Answer:
    json, tag = row
    if tag is None:
        return Answer(200, json.encode())
    # A tag does not tell computed properties apart: who has an old Datastream is given the new one.
    whole = not any(known.computed for known in entity_type.properties.values())
    if whole and is_known(request, tag):
        return Answer(304, headers=etag(tag))
    return Answer(200, json.encode(), headers=etag(tag))


def _property(row: tuple[Any, ...], resource: Resource) -> Answer:
    """A property (OGC 18-088 §9.2.4): 200 with null if null is a value of it, 204 if it is unset."""
    value, raw = row
    known = resource.of_property
    if value is None and resource.members:
        raise not_found(f"{_path_of(resource)} does not exist")
    if resource.value:
        return Answer(204) if raw is None else Answer(200, raw.encode(), TEXT)
    if value is None:
        if known is None or not known.nullable:
            return Answer(204)
        value = "null"
    return Answer(200, b"{%s:%s}" % (msgspec.json.encode(resource.key), value.encode()))


def _path_of(resource: Resource) -> str:
    """The path with its ids, as links write it."""
    path = resource.shape
    for number in resource.ids:
        path = path.replace("()", f"({number})", 1)
    return path


def refusal(error: CitylabError) -> Answer:
    """What an error answers."""
    status = status_of(error)
    headers: Headers = ()
    if isinstance(error, Unavailable):
        headers = ((b"retry-after", str(max(1, round(error.retry_after))).encode()),)
    if status == 405:
        headers = ((b"allow", b"GET, HEAD, OPTIONS, POST, PATCH, PUT, DELETE"),)
    return Answer(status, body(status, message_of(error)), headers=headers)


_PREFLIGHT: Headers = (
    (b"access-control-allow-methods", b"GET, HEAD, OPTIONS"),
    (b"access-control-allow-headers", b"*"),
    (b"access-control-max-age", b"86400"),
)
