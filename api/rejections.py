"""`/rejections`: what was refused and why; and asking for it to be taken up again once the cause is mended."""

from typing import Annotated
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Path, Query
from fastapi.responses import Response
from pydantic import Field

from api.queries import Asked, Id, TimeRange, answer, documented
from api.sensorthings.errors import RequestError, not_found
from citylab.model import Reason
from citylab.ports import Store
from citylab.rejections import Payload, Rejection, Selection, find, payload_of, replay_of, replay_selection
from citylab.times import format_instant

PATIENCE = 5.0  # s that a request to take up waits for what becomes of it


class RejectionPage(msgspec.Struct, omit_defaults=True, rename={"next_link": "nextLink"}):
    """A page of rejections, the newest first."""

    value: list[Rejection]
    next_link: str | None = None


class RejectionWithPayload(Rejection, frozen=True, kw_only=True):
    """One rejection, with the bytes of a pack that was refused whole."""

    payload: Payload | None = None


class RejectionQuery(TimeRange):
    """What `/rejections` can be asked; `from` and `to` are of the receipt."""

    gateway: Annotated[str | None, Field(description="Of this gateway.")] = None
    reason: Annotated[Reason | None, Field(description="For this reason.")] = None
    stream: Annotated[str | None, Field(description="Of this stream, by its name.")] = None
    open: Annotated[bool | None, Field(description="Whether it is open, or was taken up since.")] = None
    limit: Annotated[int, Field(ge=1, le=1_000, description="Rejections of a page.")] = 100
    before: Annotated[Id | None, Field(description="Older than this one: part of nextLink.")] = None


class ReplayQuery(Asked):
    """Which open rejections are to be taken up: all that hold, and at least one of these is said."""

    gateway: Annotated[str | None, Field(description="Of this gateway.")] = None
    reason: Annotated[Reason | None, Field(description="For this reason.")] = None
    stream: Annotated[str | None, Field(description="Of this stream, by its name.")] = None


_REPLAY = (
    "Processing takes each up in a transaction: rows in, rejection closed, ledger entered anew. Nothing comes in twice, and"
    " what is still wrong stays a rejection, with what is wrong now. The answer comes when all is done, or after"
    f" {PATIENCE:g} s with what still waits (`waiting`); `/rejections/replays/{{id}}` then tells the rest."
)


def rejections_router(store: Store, *, patience: float = PATIENCE) -> APIRouter:
    """The routes. patience: in seconds."""
    router = APIRouter(tags=["accounts"])

    @router.get(
        "/rejections",
        summary="What was refused and why, the newest first",
        responses=documented("RejectionPage", "A page.", 400, 503),
        response_class=Response,
    )
    async def rejections(query: Annotated[RejectionQuery, Query()]) -> Response:
        selection = Selection(
            gateway=query.gateway, reason=query.reason, stream=query.stream, open=query.open, start=query.start,
            end=query.end,
        )  # fmt: skip
        async with store.transaction(read_only=True) as transaction:
            found = await find(transaction, selection, before=query.before, most=query.limit + 1)
        page = RejectionPage(found[: query.limit])
        if len(found) > query.limit:
            again = query.model_dump(exclude_unset=True, by_alias=True) | {"before": page.value[-1].id}
            times = {
                name: format_instant(again[name]) for name in ("from", "to") if again.get(name) is not None
            }
            page.next_link = f"/rejections?{urlencode(again | times)}"
        return answer(page)

    @router.get(
        "/rejections/{id}",
        summary="One rejection, with its bytes where a pack was refused whole",
        responses=documented("RejectionWithPayload", "The rejection.", 400, 404, 503),
        response_class=Response,
    )
    async def rejection(one: Annotated[Id, Path(alias="id")]) -> Response:
        async with store.transaction(read_only=True) as transaction:
            found = await find(transaction, Selection(ids=[one]), most=1)
            if not found:
                raise not_found(f"there is no rejection {one}")
            payload = await payload_of(transaction, one)
        return answer(RejectionWithPayload(**msgspec.structs.asdict(found[0]), payload=payload))

    @router.post(
        "/rejections/replay",
        summary="Take up what is open again, by gateway, reason or stream",
        description=_REPLAY,
        responses=documented("Replay", "What became of it.", 400, 503),
        response_class=Response,
    )
    async def replay_some(query: Annotated[ReplayQuery, Query()]) -> Response:
        if not query.model_fields_set:
            raise RequestError(400, "say what is to be taken up: gateway, reason, stream or several of them")
        selection = Selection(gateway=query.gateway, reason=query.reason, stream=query.stream)
        return answer(await replay_selection(store, selection, patience=patience))

    @router.post(
        "/rejections/{id}/replay",
        summary="Take a rejection up again",
        description=_REPLAY,
        responses=documented("Replay", "What became of it.", 400, 404, 503),
        response_class=Response,
    )
    async def replay_one(one: Annotated[Id, Path(alias="id")]) -> Response:
        async with store.transaction(read_only=True) as transaction:
            if not await find(transaction, Selection(ids=[one]), most=1):
                raise not_found(f"there is no rejection {one}")
        return answer(await replay_selection(store, Selection(ids=[one]), patience=patience))

    @router.get(
        "/rejections/replays/{id}",
        summary="What became of a request to take rejections up",
        responses=documented("Replay", "What became of it so far.", 400, 404, 503),
        response_class=Response,
    )
    async def replay(one: Annotated[Id, Path(alias="id")]) -> Response:
        async with store.transaction(read_only=True) as transaction:
            found = await replay_of(transaction, one)
        if found is None:
            raise not_found(f"there is no request {one} to take rejections up")
        return answer(found)

    return router
