"""What requests that change or delete entities say: documents, conditions (RFC 9110 §13), which entities."""

import re

from api.sensorthings.errors import RequestError
from api.sensorthings.options import read_query
from api.sensorthings.requests import Headers, Request
from api.sensorthings.syntax import Query
from citylab.drafts import Draft, read_changes
from citylab.entities import EntityType
from citylab.json_patch import apply_patch

_TAG = re.compile(rb'(?:W/)?"([^"]*)"')


def read_change(request: Request, entity_type: EntityType, current: str) -> Draft:
    """What a PATCH, a JSON Patch (RFC 6902) or a PUT makes of an entity, whose JSON now is `current`.

    Raises `Rejected`, and `RequestError` 415 for a kind of patch that is not known here.
    """
    if request.method == "PUT":
        return read_changes(entity_type, request.body, replace=True)
    kind = (request.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind == b"application/json-patch+json":
        return read_changes(entity_type, apply_patch(current.encode(), request.body), replace=True)
    if b"patch" in kind:  # RFC 7396, say: it merges more than the top level
        raise RequestError(415, "a PATCH is application/json, or application/json-patch+json")
    return read_changes(entity_type, request.body)


def read_deletion(query_string: str) -> Query:
    """The filter of a request to delete what it matches in a collection. Raises `RequestError` 400 if there is none."""
    query = read_query(query_string)
    names = [name for name, _ in query.options()]
    if query.filter is None or names != ["$filter"] or query.skiptoken is not None:
        raise RequestError(
            400, "a collection is not deleted as a whole: say with $filter, and nothing else, what to delete"
        )
    return query


def etag(tag: str) -> Headers:
    """The header that tells the entity tag. Weak: computed properties, links and `$select` are not in it."""
    return ((b"etag", b'W/"%s"' % tag.encode()),)


def check_conditions(request: Request, tag: str) -> None:
    """Raise `RequestError` 412 unless the entity that has this tag is one that the request may change."""
    wanted = request.header(b"if-match")
    refused = request.header(b"if-none-match")
    if (wanted is not None and not _names(wanted, tag)) or (refused is not None and _names(refused, tag)):
        raise RequestError(412, "the entity has changed since the version that the request names")


def is_known(request: Request, tag: str) -> bool:
    """Whether the client says that it has what has this tag."""
    known = request.header(b"if-none-match")
    return known is not None and _names(known, tag)


def _names(header: bytes, tag: str) -> bool:
    return header.strip() == b"*" or tag.encode() in _TAG.findall(header)
