"""Batches of requests (OGC 18-088 §11.1; OData 4.0 part 1 §11.7), whatever the form in which they come.

The requests are answered in their order; those of a change set in one transaction, which one that fails rolls back. A
request with an id may be referred to by later ones: `$id` at the beginning of an address or in `(...)`, and as an `@iot.id`.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

import msgspec
import structlog

from api.sensorthings.errors import RequestError, body
from api.sensorthings.requests import ROOT, Answer, Headers, Request
from citylab.errors import CitylabError, Unavailable
from citylab.ports import Store, Transaction

MOST_REQUESTS = 1_000
LARGEST_ANSWER = 64 << 20  # bytes, of all answers together
_ATTEMPTS = 10  # of a change set that met another transaction
_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"})
_ADDRESS = re.compile(r"/?\$([A-Za-z0-9_.:,;\-]+)(?=[/?(]|\Z)")
_KEY = re.compile(r"\(\$([A-Za-z0-9_.:,;\-]+)\)")
_LINK = re.compile(rb'("@iot\.id"\s*:\s*)(?:"\$([A-Za-z0-9_.:,;\-]+)"|\$([A-Za-z0-9_.:\-]+))')
_OWN_ID = re.compile(r"\((\d+)\)\Z")

log = structlog.get_logger()


class Item(NamedTuple):
    """One request of a batch. name: its id, or empty; depends_on: ids of requests or groups that must have succeeded."""

    method: str
    url: str
    headers: Headers
    body: bytes
    name: str = ""
    depends_on: tuple[str, ...] = ()
    group: str = ""


class Outcome(NamedTuple):
    """What became of a request."""

    name: str
    answer: Answer


Part: TypeAlias = Item | list[Item]  # a list is a change set
Batch: TypeAlias = list[Part]


class _Self(msgspec.Struct, rename={"link": "@iot.selfLink"}):
    link: str = ""


_self = msgspec.json.Decoder(_Self)


class _Failed(Exception):
    """A member of a change set failed; everything is rolled back."""

    def __init__(self, member: int, answer: Answer) -> None:
        super().__init__()
        self.member = member
        self.answer = answer


class BatchRun:
    """One batch while it is answered. answer: the service; refusal: what an error answers; outer: the batch's request."""

    def __init__(
        self,
        store: Store,
        answer: Callable[[Request], Awaitable[Answer]],
        refusal: Callable[[CitylabError], Answer],
        outer: Request,
    ) -> None:
        self._store = store
        self._answer = answer
        self._refusal = refusal
        self._outer = outer
        self._links: dict[str, str] = {}  # of what requests created or read, below the root, by their ids
        self._failed: set[str] = set()  # ids of requests and groups
        self._room = LARGEST_ANSWER

    async def answers(self, batch: Batch, *, stop: bool, one_for_all: bool) -> list[Outcome | list[Outcome]]:
        """Answer every request, in order.

        stop: after the first that fails; one_for_all: a change set that fails has one answer, else one for each member.
        """
        if sum(len(part) if isinstance(part, list) else 1 for part in batch) > MOST_REQUESTS:
            raise RequestError(413, f"a batch has at most {MOST_REQUESTS} requests")
        outcomes: list[Outcome | list[Outcome]] = []
        for part in batch:
            if isinstance(part, list):
                answers, culprit = await self._change_set(part)
                whole = [Outcome(item.name, answer) for item, answer in zip(part, answers, strict=True)]
                outcomes.append(whole[culprit] if one_for_all and culprit is not None else whole)
            else:
                answer = await self._one(part, self._links, None)
                culprit = 0 if answer.status >= 400 else None
                outcomes.append(Outcome(part.name, answer))
                self._failed |= {part.name} if culprit is not None else set()
            if stop and culprit is not None:
                break
        return outcomes

    async def _change_set(self, items: Sequence[Item]) -> tuple[list[Answer], int | None]:
        """The answers of all members, and which of them failed and rolled all back, if one did."""
        for attempt in range(_ATTEMPTS):
            links = dict(self._links)
            room = self._room
            answers: list[Answer] = []
            try:
                async with self._store.transaction() as transaction:
                    for item in items:
                        answer = await self._one(item, links, transaction)
                        if answer.status >= 400:
                            raise _Failed(len(answers), answer)
                        answers.append(answer)
            except _Failed as failure:
                self._failed |= {name for item in items for name in (item.name, item.group)}
                others = self._refusal(RequestError(424, "another request of the same change set failed"))
                answers = [others] * len(items)
                answers[failure.member] = failure.answer
                return answers, failure.member
            except Unavailable as error:
                self._room = room
                if error.retry_after or attempt == _ATTEMPTS - 1:
                    self._failed |= {name for item in items for name in (item.name, item.group)}
                    return [self._refusal(error)] * len(items), 0
                continue
            self._links = links
            return answers, None
        raise AssertionError

    async def _one(self, item: Item, links: dict[str, str], transaction: Transaction | None) -> Answer:
        """Answer one request, and remember in `links` where its entity is."""
        try:
            if self._failed.intersection(item.depends_on):
                raise RequestError(424, "a request that this one depends on failed")
            if self._room <= 0:
                raise RequestError(413, f"the answers of a batch have at most {LARGEST_ANSWER} bytes")
            request = self._request(item, links, transaction)
            answer = await self._whole(await self._answer(request))
        except CitylabError as error:
            if transaction is not None and isinstance(error, Unavailable) and not error.retry_after:
                raise  # the change set may do better when it is tried again
            answer = self._refusal(error)
        except Exception:
            log.exception("a request of a batch failed", method=item.method, address=item.url)
            answer = Answer(500, body(500, "an error of this service, which its log describes"))
        self._room -= len(answer.content)
        if item.name and answer.status in {200, 201}:
            link = _link_of(answer)
            if link.startswith(self._outer.base):
                links[item.name] = link.removeprefix(self._outer.base)
        return answer

    def _request(self, item: Item, links: dict[str, str], transaction: Transaction | None) -> Request:
        """The request with its references filled in."""
        if item.method not in _METHODS:
            raise RequestError(405, f"{item.method[:20]} is not possible in a batch")
        path, _, query = _below_root(item.url, self._outer.base).partition("?")
        path = _ADDRESS.sub(lambda m: links.get(m[1], m[0]), path, count=1)
        path = _KEY.sub(lambda m: f"({_own_id(links, m[1]) or m[0]})", path)
        if path.strip("/") == "$batch":
            raise RequestError(400, "a batch cannot stand in a batch")

        def link(match: re.Match[bytes]) -> bytes:
            own = _own_id(links, (match[2] or match[3]).decode())
            return match[1] + own.encode() if own else match[0]

        content = _LINK.sub(link, item.body) if links else item.body
        headers = tuple((name.lower(), value) for name, value in item.headers)
        return Request(
            item.method, f"/{path.strip('/')}", query, headers, content, self._outer.base, transaction
        )

    async def _whole(self, answer: Answer) -> Answer:
        """An answer without a stream."""
        if answer.stream is None:
            return answer
        pieces = [answer.content]
        room = self._room - len(answer.content)
        async with aclosing(answer.stream) as stream:
            async for piece in stream:
                room -= len(piece)
                if room < 0:
                    raise RequestError(413, f"the answers of a batch have at most {LARGEST_ANSWER} bytes")
                pieces.append(piece)
        return answer._replace(content=b"".join(pieces), stream=None)


def _below_root(url: str, base: str) -> str:
    """An address as it stands below the service's root: absolute, from the host's root, or relative already."""
    if url.startswith(base):
        return url.removeprefix(base)
    try:
        parts = urlsplit(url)
    except ValueError:
        raise RequestError(400, "an address that is none") from None
    rooted = url.startswith("/") or bool(parts.scheme and parts.netloc)
    path = parts.path if rooted else url.partition("?")[0]
    query = url.partition("?")[2].partition("#")[0] if "?" in url else ""
    at = path.find(f"{ROOT}/")
    if rooted and at >= 0:
        path = path[at + len(ROOT) :]
    elif rooted and path.endswith(ROOT):
        path = ""
    return f"{path}?{query}" if query else path


def _own_id(links: dict[str, str], name: str) -> str:
    match = _OWN_ID.search(links.get(name, ""))
    return match[1] if match else ""


def _link_of(answer: Answer) -> str:
    """Where the entity is that a request created or read."""
    for name, value in answer.headers:
        if name == b"location":
            return value.decode("latin-1")
    try:
        return _self.decode(answer.content).link
    except msgspec.DecodeError:
        return ""
