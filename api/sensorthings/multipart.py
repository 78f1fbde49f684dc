"""multipart/mixed with HTTP messages inside, as batch requests come and go (OData 4.0 part 1 §11.7; RFC 2046 §5.1).

Lines may end in LF alone. A message's Content-Length is not believed: clients count characters in it, and the boundary
says where the message ends.
"""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus

from api.sensorthings.batches import Batch, Item, Outcome, Part
from api.sensorthings.errors import RequestError
from api.sensorthings.requests import Headers

_BOUNDARY = re.compile(
    rb"multipart/mixed\s*;(?:[^\"]|\"[^\"]*\")*?\bboundary\s*=\s*(?:\"([^\"]{1,200})\"|([^\s;\"]{1,200}))",
    re.IGNORECASE,
)
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*:[ \t]*(.*)")
_REQUEST = re.compile(rb"([A-Za-z]+)[ \t]+(\S+(?:[ \t]+\S+)*?)(?:[ \t]+HTTP/\d(?:\.\d)?)?[ \t]*")
_MOST_HEADERS = 100
_BREAK = re.compile(rb"\r?\n")


def boundary_of(kind: bytes) -> bytes | None:
    """The boundary in a Content-Type; None where it is no multipart/mixed with one."""
    match = _BOUNDARY.match(kind.strip())
    return (match[1] or match[2]) if match else None


def read_multipart(body: bytes, boundary: bytes) -> Batch:
    """Read a batch. Raises `RequestError` 400 for what is none."""
    return [_part(content, f"part {i + 1}") for i, content in enumerate(_split(body, boundary, "the batch"))]


def _part(content: bytes, where: str) -> Part:
    headers, content = _message(content, where)
    inner = boundary_of(headers.get(b"content-type", b""))
    if inner is None:
        return _item(headers, content, where)
    items = []
    for i, member in enumerate(_split(content, inner, where)):
        place = f"{where}.{i + 1}"
        headers, request = _message(member, place)
        items.append(_item(headers, request, place))
    return items


def _item(headers: Mapping[bytes, bytes], content: bytes, where: str) -> Item:
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/http":
        raise RequestError(
            400, f"{where} of the batch is application/http, or a change set in multipart/mixed"
        )
    line, rest = _line(content.lstrip(b"\r\n"))
    match = _REQUEST.fullmatch(line)
    if match is None:
        raise RequestError(400, f"{where} of the batch does not begin with a method and an address")
    own, body = _message(rest, where)
    name = headers.get(b"content-id", own.get(b"content-id", b"")).decode("latin-1")
    return Item(match[1].decode().upper(), match[2].decode("latin-1"), tuple(own.items()), body, name)


def _split(body: bytes, boundary: bytes, where: str) -> list[bytes]:
    """The contents between the delimiters."""
    delimiter = re.compile(rb"(?:\A|\r?\n)--" + re.escape(boundary) + rb"(--)?[ \t]*(?=\r?\n|\Z)")
    found = []
    begin = None
    for match in delimiter.finditer(body):
        if begin is not None:
            found.append(_line(body[begin : match.start()])[1])
        begin = match.end()
        if match[1]:
            return found
    raise RequestError(400, f"{where} does not end with its boundary {boundary.decode('latin-1')!r}")


def _message(content: bytes, where: str) -> tuple[dict[bytes, bytes], bytes]:
    """Headers, by names in lower case, and what follows them."""
    headers: dict[bytes, bytes] = {}
    for _ in range(_MOST_HEADERS):
        if not content:
            return headers, b""
        line, content = _line(content)
        if not line.strip():
            return headers, content
        match = _HEADER.fullmatch(line)
        if match is None:
            raise RequestError(400, f"{where} of the batch has a header that is none")
        headers[match[1].lower()] = match[2].strip()
    raise RequestError(400, f"{where} of the batch has more than {_MOST_HEADERS} headers")


def _line(content: bytes) -> tuple[bytes, bytes]:
    match = _BREAK.search(content)
    return (content, b"") if match is None else (content[: match.start()], content[match.end() :])


def write_multipart(outcomes: Iterable[Outcome | list[Outcome]], boundary: bytes) -> bytes:
    """The answers of a batch: those of a change set that was carried out stand in a multipart of their own."""
    parts = []
    for i, outcome in enumerate(outcomes):
        if isinstance(outcome, list):
            inner = b"%s_%d" % (boundary, i)
            members = _join([_response(one) for one in outcome], inner)
            parts.append(b"Content-Type: multipart/mixed; boundary=%s\r\n\r\n%s" % (inner, members))
        else:
            parts.append(_response(outcome))
    return _join(parts, boundary)


def _join(parts: list[bytes], boundary: bytes) -> bytes:
    return b"".join(b"--%s\r\n%s\r\n" % (boundary, part) for part in parts) + b"--%s--\r\n" % boundary


def _response(outcome: Outcome) -> bytes:
    name, answer = outcome
    phrase = HTTPStatus(answer.status).phrase
    headers: Headers = answer.headers
    if answer.has_content:
        headers = ((b"content-type", answer.kind), (b"content-length", b"%d" % len(answer.content)), *headers)
    lines = [b"Content-Type: application/http", b"Content-Transfer-Encoding: binary"]
    lines += [b"Content-ID: " + name.encode("latin-1")] if name else []
    lines += [b"", f"HTTP/1.1 {answer.status} {phrase}".encode()]
    lines += [b"%s: %s" % (key.title(), value) for key, value in headers]
    return b"\r\n".join([*lines, b"", answer.content])
