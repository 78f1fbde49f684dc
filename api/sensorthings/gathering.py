"""Single Observations that are posted at the same time, stored together.

A transaction ends with a wait for the disk, and two that touch one Datastream wait for each other. So while one is under
way, what arrives is gathered for the next; nobody waits longer than for that, and each gets its own answer.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from api.sensorthings.resource import Resource
from api.sensorthings.statements import Compiled, Compiler
from citylab.drafts import Draft, attach, is_plain_observation, read_draft
from citylab.entities import DATASTREAM, OBSERVATION
from citylab.errors import Rejected, Unavailable
from citylab.model import Micros
from citylab.ports import Store, Transaction
from citylab.times import format_instant

_MOST = 500  # in one transaction
_LINGER = 0.001  # s
_ATTEMPTS = 10  # of a transaction that met another


class Created(NamedTuple):
    """An Observation that was stored: its id, its JSON, its tag."""

    id: int
    json: str
    tag: str


class _Waiting(NamedTuple):
    draft: Draft
    base: str
    moment: Micros
    outcome: "asyncio.Future[Created | None]"


def simple_draft(resource: Resource, document: bytes) -> Draft | None:
    """The draft of an Observation that names what it belongs to by id; None where creating it takes more, or cannot be."""
    step = resource.steps[-1]
    if step.entity_type is not OBSERVATION:
        return None
    if step.relation is not None and (
        len(resource.steps) != 2 or step.relation is not DATASTREAM.relations["Observations"]
    ):
        return None
    try:
        draft = read_draft(OBSERVATION, document, parent=step.relation)
        if step.relation is not None:
            attach(draft, step.relation, resource.ids[0])
    except Rejected:
        return None
    return draft if is_plain_observation(draft) else None


class Gathering:
    """Stores simple drafts, those that arrive while a transaction is under way together in the next."""

    def __init__(self, store: Store, compiler: Compiler) -> None:
        self._store = store
        self._statement: Compiled = compiler.observations_by_key()
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None

    async def create(self, draft: Draft, base: str, *, now: Micros) -> Created | None:
        """Store a draft; None where it is refused, and nothing is stored. Raises `Unavailable`.

        base: what links begin with; now: its phenomenonTime if it has none.
        """
        draft.values.setdefault("phenomenonTime", (now, None))
        outcome: asyncio.Future[Created | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(draft, base, now, outcome))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await outcome

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                await self._answer(batch)
                if (
                    self._waiting
                ):  # others write at the same time: let those who have their answer write again
                    await asyncio.sleep(_LINGER)
        finally:
            self._worker = None
            for waiting in self._waiting:  # cancelled: the server stops
                waiting.outcome.cancel()

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        try:
            found = await self._store_all(batch)
        except Exception as error:  # noqa: BLE001 -- it is raised where the outcomes are awaited
            for waiting in batch:
                if not waiting.outcome.done():
                    waiting.outcome.set_exception(error)
        else:
            for waiting, created in zip(batch, found, strict=True):
                if not waiting.outcome.done():
                    waiting.outcome.set_result(created)
        finally:
            for waiting in batch:
                waiting.outcome.cancel()

    async def _store_all(self, batch: Sequence[_Waiting]) -> list[Created | None]:
        for attempt in range(_ATTEMPTS):
            try:
                async with self._store.transaction() as transaction:
                    drafts = [waiting.draft for waiting in batch]
                    ids, _ = await transaction.create_observations(drafts, now=batch[0].moment)
                    created = await self._read_back(transaction, batch, ids.tolist())
                return [created.get(own) for own in ids.tolist()]
            except Unavailable as error:
                if error.retry_after or attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError

    async def _read_back(
        self, transaction: Transaction, batch: Sequence[_Waiting], ids: Sequence[int]
    ) -> dict[int, Created]:
        """What was stored, by id, as JSON with the links that each request expects."""
        created: dict[int, Created] = {}
        for base in {waiting.base for waiting in batch}:
            stored = [(w.draft, own) for w, own in zip(batch, ids, strict=True) if own and w.base == base]
            parameters = dict(self._statement.parameters)
            parameters["base"] = base
            parameters["series"] = [draft.links["Datastream"][0] for draft, _ in stored]
            parameters["times"] = [_time(draft) for draft, _ in stored]
            parameters["ids"] = [own for _, own in stored]
            rows = await transaction.fetch(self._statement.sql, parameters)
            created |= {own: Created(own, json, tag) for own, json, tag in rows}
        return created


def _time(draft: Draft) -> str:
    time = draft.values["phenomenonTime"]
    assert isinstance(time, tuple)
    return format_instant(time[0])
