"""Batches in JSON (OData JSON format 4.01 §19): `requests` with `id`, `method`, `url`, `headers`, `body`."""

from collections.abc import Iterable
from itertools import groupby

import msgspec

from api.sensorthings.batches import Batch, Item, Outcome
from api.sensorthings.errors import RequestError


class _Request(
    msgspec.Struct, rename={"group": "atomicityGroup", "depends_on": "dependsOn", "condition": "if"}
):
    id: str
    method: str
    url: str
    headers: dict[str, str] = {}
    body: msgspec.Raw = msgspec.Raw()
    group: str = ""
    depends_on: list[str] = []
    condition: msgspec.Raw = msgspec.Raw()


class _Document(msgspec.Struct):
    requests: list[_Request]


_document = msgspec.json.Decoder(_Document)
_text = msgspec.json.Decoder(str)


def read_json(body: bytes) -> Batch:
    """Read a batch. Raises `RequestError`: 400 for what is none, 501 for a condition."""
    try:
        body.decode()
        requests = _document.decode(body).requests
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, f"the document is no JSON batch: {error}") from None
    seen: set[str] = set()
    for request in requests:
        if request.id in seen:
            raise RequestError(400, f"the id {request.id!r} is given twice")
        if bytes(request.condition):
            raise RequestError(501, f"request {request.id!r}: conditions are not supported")
        unknown = set(request.depends_on) - seen
        if unknown - {request.group}:
            raise RequestError(
                400, f"request {request.id!r} depends on {min(unknown)!r}, which does not precede it"
            )
        seen |= {request.id}
        if request.group:
            seen |= {request.group}
    batch: Batch = []
    groups: set[str] = set()
    for group, members in groupby(requests, lambda r: r.group):
        items = [_item(request) for request in members]
        if not group:
            batch += items
            continue
        if group in groups:
            raise RequestError(400, f"the requests of the group {group!r} do not follow each other")
        groups.add(group)
        batch.append(items)
    return batch


def _item(request: _Request) -> Item:
    body = bytes(request.body)
    if body[:1] == b'"':  # of another media type than JSON
        body = _text.decode(body).encode()
    headers = tuple((key.lower().encode(), value.encode()) for key, value in request.headers.items())
    return Item(
        request.method.upper(),
        request.url,
        headers,
        body,
        request.id,
        tuple(request.depends_on),
        request.group,
    )


def write_json(outcomes: Iterable[Outcome | list[Outcome]]) -> bytes:
    """The answers, each with the id of its request."""
    responses = []
    for outcome in outcomes:
        for name, answer in outcome if isinstance(outcome, list) else [outcome]:
            response: dict[str, object] = {"id": name, "status": answer.status}
            headers = {key.decode(): value.decode("latin-1") for key, value in answer.headers}
            if answer.has_content:
                headers["content-type"] = answer.kind.decode()
                is_json = b"json" in answer.kind
                response["body"] = msgspec.Raw(answer.content) if is_json else answer.content.decode()
            responses.append(response | {"headers": headers})
    return msgspec.json.encode({"responses": responses})
