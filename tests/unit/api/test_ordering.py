import base64
import json

import pytest

from api.sensorthings.errors import RequestError
from api.sensorthings.ordering import Key, after_token
from api.sensorthings.values import Parameters


def token(*values):
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def key(name, *, descending=False, nullable=False):
    return Key(name, "int8", descending, nullable)


def test_keys_in_one_direction_are_compared_as_a_row():
    parameters = Parameters()
    sql = after_token([key("a"), key("b")], token("1", "2"), parameters)
    assert sql == "(a, b) > (%(p0)s::int8, %(p1)s::int8)"
    assert parameters.values == {"p0": "1", "p1": "2"}


def test_mixed_directions_and_nulls():
    sql = after_token([key("a", descending=True, nullable=True), key("b")], token("1", "2"), Parameters())
    assert sql == "(((a < %(p0)s::int8 OR a IS NULL)) OR (a = %(p0)s::int8 AND b > %(p1)s::int8))"
    sql = after_token([key("a", descending=True, nullable=True), key("b")], token(None, "2"), Parameters())
    assert sql == "((a IS NULL AND b > %(p0)s::int8))"
    sql = after_token([key("a", nullable=True), key("b")], token(None, "2"), Parameters())
    assert sql == "((a IS NOT NULL) OR (a IS NULL AND b > %(p0)s::int8))"


@pytest.mark.parametrize(
    "text", ["", "x", "é", token("1"), token("1", "2", "3"), token(1, 2), "W10", "e30", "////"]
)
def test_a_token_that_is_none_is_refused(text):
    with pytest.raises(RequestError):
        after_token([key("a"), key("b")], text, Parameters())
