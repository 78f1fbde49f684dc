"""A request and its answer as values, and how they come from and go to ASGI."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, NamedTuple

from api.sensorthings.errors import RequestError
from citylab.ports import Transaction

ROOT = "/v1.1"
LARGEST_DOCUMENT = 16 << 20  # bytes
JSON = b"application/json"
TEXT = b"text/plain;charset=utf-8"
_HOST = re.compile(rb"[A-Za-z0-9._~\-]+(?::\d{1,5})?|\[[0-9A-Fa-f:.]+\](?::\d{1,5})?")
_READ_ONLY = frozenset({"GET", "HEAD", "OPTIONS"})

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]


class Request(NamedTuple):
    """What is asked, by HTTP or inside a batch.

    path: below the service's root, percent-encoded; headers: names in lower case; base: what links begin with, ending in
    /v1.1/; transaction: the one of the change set that it belongs to, which it neither commits nor tries again.
    """

    method: str
    path: str
    query: str
    headers: Headers
    body: bytes
    base: str
    transaction: Transaction | None = None

    def header(self, wanted: bytes) -> bytes | None:
        """The value of a header, or None."""
        return next((value for name, value in self.headers if name == wanted), None)


class Answer(NamedTuple):
    """A response. stream: pieces of content that follow `content`, whose length nobody knows yet."""

    status: int
    content: bytes = b""
    kind: bytes = JSON
    headers: Headers = ()
    stream: AsyncGenerator[bytes] | None = None

    @property
    def has_content(self) -> bool:
        """Whether there is content: a text may be empty, JSON is not."""
        return self.status not in {204, 304} and (bool(self.content) or self.kind != JSON)


async def receive_request(scope: Scope, receive: Receive, public_url: str | None) -> Request:
    """Take a request whole. public_url: the address that links begin with, if it is configured."""
    method = scope["method"]
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return Request(
        method,
        raw.decode("latin-1").removeprefix(ROOT),
        scope["query_string"].decode("latin-1"),
        tuple(scope["headers"]),
        b"" if method in _READ_ONLY else await _body(receive),
        _base(scope, public_url),
    )


def _base(scope: Scope, public_url: str | None) -> str:
    if public_url is not None:
        return f"{public_url}{ROOT}/"
    for name, value in scope["headers"]:
        if name == b"host" and _HOST.fullmatch(value):
            return f"{scope['scheme']}://{value.decode()}{ROOT}/"
    host, port = scope["server"]
    return f"{scope['scheme']}://{host}:{port}{ROOT}/"


async def _body(receive: Receive) -> bytes:
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


async def send_answer(answer: Answer, receive: Receive, send: Send, *, with_content: bool) -> None:
    """Send an answer. A stream is sent as fast as the client takes it, and closed when the client is gone."""
    async with AsyncExitStack() as opened:
        if answer.stream is not None:
            await opened.enter_async_context(aclosing(answer.stream))
        await send(_start(answer))
        content = answer.content if with_content else b""
        if answer.stream is None or not with_content:
            await send({"type": "http.response.body", "body": content})
            return
        gone = asyncio.create_task(_disconnected(receive))
        opened.callback(gone.cancel)
        await send({"type": "http.response.body", "body": content, "more_body": True})
        async for piece in answer.stream:
            if gone.done():
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Receive) -> None:
    """Return when the client is gone, for a server that says nothing when it sends to nobody."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(answer: Answer) -> MutableMapping[str, Any]:
    headers = [*answer.headers, *_OPEN]
    if answer.has_content:
        headers.append((b"content-type", answer.kind))
    if answer.status not in {204, 304} and answer.stream is None:
        headers.append((b"content-length", str(len(answer.content)).encode()))
    return {"type": "http.response.start", "status": answer.status, "headers": headers}


_OPEN: Headers = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"Location, ETag"),
)
