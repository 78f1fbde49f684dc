"""What a gateway says of a Task, as it is written onto the Task."""

import pytest

from citylab.errors import Rejected
from citylab.model import SECOND
from processing.tasks import read_result

NOW = 1_767_225_600 * SECOND


@pytest.mark.parametrize(
    ("payload", "state", "run_log"),
    [
        ('{"task": 7, "state": "accepted"}', "accepted", '{"at":"2026-01-01T00:00:00Z"}'),
        ('{"task": 7, "state": "running", "at": 1767225601.5}', "running", '{"at":"2026-01-01T00:00:01.5Z"}'),
        (
            '{"task": 7, "state": "failed", "at": "2026-01-01T02:00+02:00", "message": "no power", "more": 1}',
            "failed",
            '{"at":"2026-01-01T00:00:00Z","message":"no power"}',
        ),
        (
            '{"task": 9223372036854775807, "state": "completed", "result": {"a": [6.0, null]}}',
            "completed",
            '{"at":"2026-01-01T00:00:00Z","result":{"a": [6.0, null]}}',
        ),
        ('{"task": 7, "state": "completed", "result": null}', "completed", '{"at":"2026-01-01T00:00:00Z","result":null}'),
    ],
)  # fmt: skip
def test_a_result_is_read(payload, state, run_log):
    result, text = read_result(payload.encode(), NOW)
    assert (result.state, text) == (state, run_log)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "no result of a Task"),
        (b"[]", "object"),
        (b"\xff", "utf-8"),
        (b'{"state": "completed"}', "task"),
        (b'{"task": 0, "state": "completed"}', "task"),
        (b'{"task": 9223372036854775808, "state": "completed"}', "task"),
        (b'{"task": "7", "state": "completed"}', "task"),
        (b'{"task": 7, "state": "expired"}', "state"),
        (b'{"task": 7, "state": "completed", "at": "noon"}', "noon"),
        (b'{"task": 7, "state": "completed", "at": -1}', "seconds since 1970"),
        (b'{"task": 7, "state": "completed", "at": 1767225600000}', "seconds since 1970"),
        (b'{"task": 7, "state": "completed", "message": 5}', "message"),
        (b'{"task": 7, "state": "completed", "result": "\\u0000"}', "NUL"),
    ],
)
def test_what_is_no_result_says_why(payload, why):
    with pytest.raises(Rejected, match=why) as caught:
        read_result(payload, NOW)
    assert caught.value.reason == "malformed"
