"""RFC 6902, on its own examples (appendix A) and on what is ours: exact numbers."""

import json

import pytest

from citylab.errors import Rejected
from citylab.json_patch import apply_patch


def patched(document: str, *operations: dict) -> str:
    return apply_patch(document.encode(), json.dumps(operations).encode()).decode()


@pytest.mark.parametrize(
    ("document", "operation", "becomes"),
    [
        ({"foo": "bar"}, {"op": "add", "path": "/baz", "value": "qux"}, {"foo": "bar", "baz": "qux"}),
        ({"foo": ["a", "b"]}, {"op": "add", "path": "/foo/1", "value": "q"}, {"foo": ["a", "q", "b"]}),
        ({"a": 1, "b": 2}, {"op": "remove", "path": "/a"}, {"b": 2}),
        ({"foo": ["a", "q", "b"]}, {"op": "remove", "path": "/foo/1"}, {"foo": ["a", "b"]}),
        ({"a": 1, "b": 2}, {"op": "replace", "path": "/a", "value": "x"}, {"a": "x", "b": 2}),
        ({"a": [1, 2]}, {"op": "replace", "path": "/a/0", "value": 3}, {"a": [3, 2]}),
        ({"f": {"x": 1}, "q": {}}, {"op": "move", "from": "/f/x", "path": "/q/y"}, {"f": {}, "q": {"y": 1}}),
        ({"f": [1, 2, 3]}, {"op": "move", "from": "/f/0", "path": "/f/2"}, {"f": [2, 3, 1]}),
        ({"f": {"x": [1]}}, {"op": "copy", "from": "/f", "path": "/g"}, {"f": {"x": [1]}, "g": {"x": [1]}}),
        ({"a": [1, "x"]}, {"op": "test", "path": "/a/1", "value": "x"}, {"a": [1, "x"]}),
        ({"a": 10}, {"op": "test", "path": "/a", "value": 1e1}, {"a": 10}),
        ({"f": "b"}, {"op": "add", "path": "/c", "value": None, "xyz": 1}, {"f": "b", "c": None}),
        ({"/": 9, "~1": 10}, {"op": "test", "path": "/~01", "value": 10}, {"/": 9, "~1": 10}),
        ({"f": ["b"]}, {"op": "add", "path": "/f/-", "value": ["a"]}, {"f": ["b", ["a"]]}),
        ({"a": 1}, {"op": "replace", "path": "", "value": {"b": 2}}, {"b": 2}),
    ],
)
def test_an_operation_does_what_the_standard_shows(document, operation, becomes):
    assert json.loads(patched(json.dumps(document), operation)) == becomes


def test_numbers_stay_as_they_are_written():
    exact = '{"a":6.0,"b":1234567890123456789012345678901234567890,"c":1.10,"d":-0.0}'
    assert patched(exact, {"op": "add", "path": "/e", "value": 1}) == exact[:-1] + ',"e":1}'


@pytest.mark.parametrize(
    ("tested", "value"), [(True, 1), (0, False), ("1", 1), ({"x": 1}, {}), ([1], [1, 2]), (None, 0), (1, 2)]
)
def test_a_test_that_fails_is_a_conflict(tested, value):
    with pytest.raises(Rejected) as refused:
        patched(json.dumps({"a": tested}), {"op": "test", "path": "/a", "value": value})
    assert refused.value.reason == "conflict"


@pytest.mark.parametrize(
    "patch",
    [
        "{}",
        "[1]",
        "[",
        '[{"op": "add", "path": "a", "value": 1}]',
        '[{"op": "add", "path": "/a"}]',
        '[{"op": "add", "path": "/x/y", "value": 1}]',
        '[{"op": "add", "path": "/l/9", "value": 1}]',
        '[{"op": "add", "path": "/l/01", "value": 1}]',
        '[{"op": "add", "path": "/n/0", "value": 1}]',
        '[{"op": "remove", "path": "/x"}]',
        '[{"op": "replace", "path": "/x", "value": 1}]',
        '[{"op": "move", "from": "/o", "path": "/o/p"}]',
        '[{"op": "add", "path": "/~2", "value": 1}]',
        '[{"op": "jump", "path": "/a"}]',
        '[{"op": "remove", "path": ""}]',
        '[{"op": "add", "path": "/a", "value": NaN}]',
        '[{"op": "add", "path": "/a", "value": "\\ud800"}]',
        "[" * 100_000,
    ],
)
def test_what_is_no_patch_or_does_not_fit_is_refused(patch):
    with pytest.raises(Rejected) as refused:
        apply_patch(b'{"a":1,"l":[1],"n":1,"o":{"p":1}}', patch.encode())
    assert refused.value.reason == "malformed"


def test_copies_that_double_end():
    doubling = [{"op": "copy", "from": "", "path": f"/{i}"} for i in range(100)]
    with pytest.raises(Rejected, match="copies more than"):
        patched('{"a":"' + "x" * 1000 + '"}', *doubling)
