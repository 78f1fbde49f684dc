"""`/ledger`: of each gateway what came and what is missing, since when and why; of a Datastream its holes in time."""

from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import Field

from api.queries import Id, TimeRange, Width, answer, documented
from api.sensorthings.errors import RequestError, not_found
from citylab.ledger import MOST_HOLES, LedgerEntry, entries, stream_account
from citylab.model import DAY, HOUR, Micros
from citylab.ports import Store, Transaction
from citylab.times import now

MOST_WINDOWS = 10_000
_ALONE = ("gateway", "after", "limit", "holes")  # of an answer about gateways
_OF_STREAM = ("start", "end", "width")


class LedgerPage(msgspec.Struct, omit_defaults=True, rename={"next_link": "nextLink"}):
    """A page of the ledger."""

    value: list[LedgerEntry]
    next_link: str | None = None


class LedgerQuery(TimeRange):
    """What `/ledger` can be asked."""

    gateway: Annotated[str | None, Field(description="Of this gateway alone.")] = None
    datastream: Annotated[
        Id | None, Field(description="The account of this Datastream in time, instead of gateways'.")
    ] = None
    width: Annotated[Width | None, Field(description="Of the Datastream's windows; an hour by default.")] = (
        None
    )
    limit: Annotated[int, Field(ge=1, le=1_000, description="Entries of a page.")] = 100
    holes: Annotated[int, Field(ge=0, le=MOST_HOLES, description="Holes listed of an entry.")] = 100
    after: Annotated[str | None, Field(description="Where the page begins: part of nextLink.")] = None

    def place(self) -> tuple[str, int]:
        """Gateway and epoch before the page. Raises `RequestError`."""
        if self.after is None:
            return "", -1
        epoch, _, gateway = self.after.partition(",")
        if not (epoch.isascii() and epoch.isdigit() and len(epoch) < 19):
            raise RequestError(400, "after is part of a nextLink, never written by hand")
        return gateway, int(epoch)


def ledger_router(store: Store, *, clock: Callable[[], Micros] = now) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["accounts"])

    @router.get(
        "/ledger",
        summary="What came of each gateway and what is missing, since when and why; or of a Datastream",
        description=(
            "By gateway and epoch (an epoch is the life of a gateway's outbox; 0 has the packs without numbers): numbers that have"
            " not come are `pending` (the gateway still has them), `gone` (it had to drop them), `missing` (it has neither,"
            " and the log has since been read to where it ended then) or `unsettled` (it has said nothing of them since)."
            " With `datastream`, `from` and `to` (the last day by default): values received against those expected from"
            " the declared `properties.interval`, by window in UTC, and the holes in time. Without an interval nothing is"
            " expected, and there are no holes."
        ),
        responses=documented("LedgerPage", "A page, or with `datastream` a StreamAccount.", 400, 404, 503),
        response_class=Response,
    )
    async def ledger(query: Annotated[LedgerQuery, Query()]) -> Response:
        given = query.model_fields_set
        if query.datastream is not None and given.intersection(_ALONE):
            raise RequestError(400, "datastream goes with from, to and width alone")
        if query.datastream is None and given.intersection(_OF_STREAM):
            raise RequestError(400, "from, to and width go with datastream=ID")
        async with store.transaction(read_only=True) as transaction:
            if query.datastream is not None:
                return await _of_stream(transaction, query, query.datastream, clock())
            found = await entries(
                transaction,
                gateway=query.gateway,
                after=query.place(),
                most=query.limit + 1,
                holes=query.holes,
            )
            if (
                not found
                and query.gateway is not None
                and query.after is None
                and not await transaction.fetch("SELECT 1 FROM gateways WHERE name = %s", (query.gateway,))
            ):
                raise not_found(f"no gateway {query.gateway!r} has ever published")
        page = LedgerPage(found[: query.limit])
        if len(found) > query.limit:
            last = page.value[-1]
            again = {name: getattr(query, name) for name in ("gateway", "limit", "holes") if name in given}
            page.next_link = f"/ledger?{urlencode(again | {'after': f'{last.epoch},{last.gateway}'})}"
        return answer(page)

    return router


async def _of_stream(
    transaction: Transaction, query: LedgerQuery, datastream: int, moment: Micros
) -> Response:
    start, end = query.between(moment, DAY)
    width = query.width or HOUR
    if (end - start) // width >= MOST_WINDOWS:
        raise RequestError(
            400, f"more than {MOST_WINDOWS:,} windows: ask for wider ones, or for a shorter time"
        )
    account = await stream_account(transaction, datastream, start=start, end=end, width=width, now=moment)
    if account is None:
        raise not_found(f"there is no Datastream {datastream}")
    return answer(account)
