"""What a request can be refused for, and the JSON that says so: `code`, `type`, `message`."""

import msgspec

from citylab.errors import CitylabError, Rejected, TimedOut, Unavailable
from citylab.model import Reason

_TYPES = {
    400: "bad-request",
    404: "not-found",
    405: "method-not-allowed",
    409: "conflict",
    412: "precondition-failed",
    413: "too-large",
    415: "unsupported-media-type",
    424: "failed-dependency",
    500: "internal-error",
    501: "not-implemented",
    503: "unavailable",
}
_CONTEXT = 20  # characters of the text shown after the position of a fault


class RequestError(CitylabError):
    """A request that cannot be answered as it is. `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Fault(CitylabError):
    """Something wrong in a piece of text. at: index of the character; unsupported: legal in OData, but not done here."""

    def __init__(self, at: int, what: str, *, unsupported: bool = False) -> None:
        super().__init__(what)
        self.at = at
        self.unsupported = unsupported

    def in_text(self, name: str, text: str) -> RequestError:
        """The error of the request, which names the option and counts characters from 1."""
        if self.at >= len(text):
            place = "at its end"
        else:
            shown = text[self.at : self.at + _CONTEXT]
            place = f"at character {self.at + 1}, {shown!r}"
        return RequestError(501 if self.unsupported else 400, f"{name}: {self} ({place})")


def not_found(what: str) -> RequestError:
    """The address names nothing."""
    return RequestError(404, what)


def status_of(error: CitylabError) -> int:
    """The HTTP status of one of our errors."""
    match error:
        case RequestError():
            return error.status
        case Rejected():
            return 409 if error.reason == Reason.CONFLICT else 400
        case Unavailable():
            return 503
        case _:
            return 500


def message_of(error: CitylabError) -> str:
    """What a person is told; why an engine does not answer is for the log, not for everybody."""
    match error:
        case Rejected():
            return error.detail
        case TimedOut():
            return (
                "this takes longer than a request may (CITYLAB_STATEMENT_SECONDS): ask for less at once, by a narrower"
                " $filter, a smaller $top, fewer levels of $expand, or without $count"
            )
        case Unavailable():
            return f"the {error.engine} does not answer in time; try again in a moment"
        case _:
            return str(error)


def body(status: int, message: str) -> bytes:
    """The JSON of an error."""
    return msgspec.json.encode({"code": status, "type": _TYPES.get(status, "error"), "message": message})
