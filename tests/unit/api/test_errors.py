import json

import pytest

from api.sensorthings.errors import Fault, RequestError, body, message_of, status_of
from citylab.errors import ConfigurationError, Rejected, Unavailable


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestError(404, "x"), 404),
        (Rejected("malformed", "x"), 400),
        (Rejected("conflict", "x"), 409),
        (Unavailable("store", "x"), 503),
        (ConfigurationError("x"), 500),
    ],
)
def test_every_error_has_a_status(error, status):
    assert status_of(error) == status
    assert set(json.loads(body(status, message_of(error)))) == {"code", "type", "message"}


def test_why_an_engine_does_not_answer_is_not_told():
    assert "10.0.0.5" not in message_of(Unavailable("store", "connection to server at 10.0.0.5 failed"))


def test_a_fault_counts_characters_from_one_and_shows_what_stands_there():
    assert str(Fault(5, "no").in_text("$filter", "name ! 'x'")) == "$filter: no (at character 6, \"! 'x'\")"
    assert str(Fault(4, "no").in_text("$filter", "name")) == "$filter: no (at its end)"
    assert Fault(0, "no", unsupported=True).in_text("$filter", "x").status == 501
