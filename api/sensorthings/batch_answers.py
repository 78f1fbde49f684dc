"""`$batch` in both of its forms: multipart/mixed, as the standard has it, and JSON."""

import secrets
from collections.abc import Awaitable, Callable

from api.sensorthings.batches import BatchRun
from api.sensorthings.errors import RequestError
from api.sensorthings.json_batch import read_json, write_json
from api.sensorthings.multipart import boundary_of, read_multipart, write_multipart
from api.sensorthings.requests import Answer, Request
from citylab.errors import CitylabError
from citylab.ports import Store


async def answer_batch(
    request: Request,
    store: Store,
    answer: Callable[[Request], Awaitable[Answer]],
    refusal: Callable[[CitylabError], Answer],
) -> Answer:
    """Answer a batch. Raises `RequestError` for one that cannot be read, before anything in it is done.

    A request that fails does not stop the later ones, unless `Prefer: continue-on-error=false` asks for that.
    """
    kind = request.header(b"content-type") or b""
    preferred = (request.header(b"prefer") or b"").replace(b" ", b"").lower()
    stop = b"continue-on-error=false" in preferred
    run = BatchRun(store, answer, refusal, request)
    boundary = boundary_of(kind)
    if boundary is not None:
        batch = read_multipart(request.body, boundary)
        outcomes = await run.answers(batch, stop=stop, one_for_all=True)
        own = f"batch_{secrets.token_hex(16)}".encode()
        return Answer(200, write_multipart(outcomes, own), b"multipart/mixed; boundary=" + own)
    if kind.partition(b";")[0].strip().lower() == b"application/json":
        outcomes = await run.answers(read_json(request.body), stop=stop, one_for_all=False)
        return Answer(200, write_json(outcomes))
    raise RequestError(415, "a batch is multipart/mixed with a boundary, or application/json")
