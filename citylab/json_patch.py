"""JSON Patch (RFC 6902) over documents whose numbers stay as they are written: `6.0` is not `6`, forty digits stay forty.

The libraries there are read numbers as floats, and let `true` pass for 1 in a test.
"""

import json
import re
from decimal import Decimal
from typing import Any, NoReturn

import msgspec

from citylab.errors import Rejected
from citylab.model import Reason

_MOST_OPERATIONS = 1_000
_MOST_COPIED = 16 << 20  # bytes of JSON in all: copies into copies double
_INDEX = re.compile(r"0|[1-9]\d{0,9}")
_encoder = msgspec.json.Encoder(decimal_format="number")


def apply_patch(document: bytes, patch: bytes) -> bytes:
    """Apply a patch to a document; return the document that it becomes.

    Raises `Rejected`: reason `conflict` when a `test` fails, `malformed` when the patch is none or does not fit.
    """
    try:
        root: dict[str, Any] = {"": _read(document)}
        operations = _read(patch)
        if not isinstance(operations, list) or len(operations) > _MOST_OPERATIONS:
            _refuse(f"a JSON Patch is an array of at most {_MOST_OPERATIONS} operations")
        copied = 0
        for i, operation in enumerate(operations):
            copied += _apply(root, operation, f"operation {i}")
            if copied > _MOST_COPIED:
                _refuse(f"operation {i}: the patch copies more than {_MOST_COPIED} bytes")
        return _encoder.encode(_find(root, [""], "the end"))
    except RecursionError:
        _refuse("the document is nested too deeply")
    except UnicodeEncodeError:
        _refuse("the patch holds a lone surrogate, which no text can have")


def _apply(root: dict[str, Any], operation: Any, where: str) -> int:
    """Apply one operation; return how many bytes it copied."""
    if not isinstance(operation, dict):
        _refuse(f"{where} must be an object")
    path = _pointer(operation, "path", where)
    match operation.get("op"):
        case "add":
            _add(root, path, _value(operation, where), where)
        case "remove":
            _remove(root, path, where)
        case "replace":
            value = _value(operation, where)
            _remove(root, path, where)
            _add(root, path, value, where)
        case "move":
            source = _pointer(operation, "from", where)
            if path[: len(source)] == source and len(path) > len(source):
                _refuse(f"{where} moves a value into itself")
            _add(root, path, _remove(root, source, where), where)
        case "copy":
            text = _encoder.encode(_find(root, _pointer(operation, "from", where), where))
            _add(root, path, _read(text), where)
            return len(text)
        case "test":
            if not _same(_find(root, path, where), _value(operation, where)):
                raise Rejected(
                    Reason.CONFLICT, f"{where}: {operation['path']!r} does not have the value tested for"
                )
        case other:
            _refuse(f"{where}: there is no operation {other!r}")
    return 0


def _pointer(operation: dict[str, Any], name: str, where: str) -> list[str]:
    """A JSON Pointer (RFC 6901) as keys from the root's one member on."""
    text = operation.get(name)
    if not isinstance(text, str) or (text and text[0] != "/") or re.search(r"~(?![01])", text):
        _refuse(f"{where}: {name!r} must be a JSON Pointer, such as /properties/key")
    return [key.replace("~1", "/").replace("~0", "~") for key in text.split("/")]


def _value(operation: dict[str, Any], where: str) -> Any:
    if "value" not in operation:
        _refuse(f"{where} needs a value")
    return operation["value"]


def _find(root: Any, path: list[str], where: str) -> Any:
    for key in path:
        root = root[_place(root, key, where)]
    return root


def _add(root: Any, path: list[str], value: Any, where: str) -> None:
    parent = _find(root, path[:-1], where)
    if isinstance(parent, dict):
        parent[path[-1]] = value
    elif isinstance(parent, list) and path[-1] in {"-", str(len(parent))}:
        parent.append(value)
    else:
        place = _place(parent, path[-1], where)
        parent.insert(place, value)


def _remove(root: Any, path: list[str], where: str) -> Any:
    parent = _find(root, path[:-1], where)
    return parent.pop(_place(parent, path[-1], where))


def _place(parent: Any, key: str, where: str) -> Any:
    """The key or index under which `parent` holds something."""
    if isinstance(parent, dict) and key in parent:
        return key
    if isinstance(parent, list) and _INDEX.fullmatch(key) and int(key) < len(parent):
        return int(key)
    raise Rejected(Reason.MALFORMED, f"{where}: there is nothing at {key!r}")


def _same(a: Any, b: Any) -> bool:
    """Equality as RFC 6902 §4.6 means it: numbers by value; a boolean is no number."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _read(text: bytes) -> Any:
    try:
        return json.loads(text, parse_int=Decimal, parse_float=Decimal, parse_constant=_no_constant)
    except ValueError as error:
        _refuse(f"the patch is no JSON: {error}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _refuse(what: str) -> NoReturn:
    raise Rejected(Reason.MALFORMED, what)
