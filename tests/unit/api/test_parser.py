import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.sensorthings.errors import Fault, RequestError
from api.sensorthings.options import read_query, write_query
from api.sensorthings.parser import DEEPEST, Parser
from api.sensorthings.syntax import Binary, Call, In, Lambda, Literal, LiteralKind, Not, Path


def parsed(text):
    parser = Parser(text)
    expression = parser.expression()
    parser.end()
    return expression


def shape(node):
    """An expression as nested tuples, for reading."""
    match node:
        case Literal():
            return node.value
        case Path():
            return "/".join(str(step) for step in node.steps)
        case Call():
            return (node.name, *map(shape, node.arguments))
        case Not():
            return ("not", shape(node.operand))
        case Binary():
            return (node.operator, shape(node.left), shape(node.right))
        case In():
            return ("in", shape(node.value), [shape(c) for c in node.choices])
        case Lambda():
            return (
                "all" if node.every else "any",
                shape(node.path),
                node.variable,
                node.predicate and shape(node.predicate),
            )


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a or b and c", ("or", "a", ("and", "b", "c"))),
        ("a and b or c", ("or", ("and", "a", "b"), "c")),
        ("not a eq b", ("eq", ("not", "a"), "b")),
        ("not (a eq b)", ("not", ("eq", "a", "b"))),
        ("not not a", ("not", ("not", "a"))),
        ("a add b mul c eq d", ("eq", ("add", "a", ("mul", "b", "c")), "d")),
        ("a sub b sub c", ("sub", ("sub", "a", "b"), "c")),
        ("a mod b div c", ("div", ("mod", "a", "b"), "c")),
        ("(a add b) mul c", ("mul", ("add", "a", "b"), "c")),
        ("a lt -5", ("lt", "a", "-5")),
        ("a eq 'O''Reilly'", ("eq", "a", "O'Reilly")),
        ("a eq ''", ("eq", "a", "")),
        ("a eq 1.5e-3", ("eq", "a", "1.5e-3")),
        ("a eq true", ("eq", "a", True)),
        ("a eq null", ("eq", "a", None)),
        ("a/b[0][1]/c eq 1", ("eq", "a/b/0/1/c", "1")),
        ("properties/air-quality.no2:raw gt 1", ("gt", "properties/air-quality.no2:raw", "1")),
        ("@iot.id eq 1", ("eq", "@iot.id", "1")),
        ("null/a eq 1", ("eq", "null/a", "1")),
        ("a/true eq 1", ("eq", "a/true", "1")),
        ("f(a,g(b), 'c')", ("f", "a", ("g", "b"), "c")),
        ("now()", ("now",)),
        ("geo.distance(a, b)", ("geo.distance", "a", "b")),
        ("a in (1, 'x')", ("in", "a", ["1", "x"])),
        ("1 in a/b", ("in", "1", ["a/b"])),
        ("a/any(d: d/b eq 1)", ("any", "a", "d", ("eq", "d/b", "1"))),
        ("a/b/all(d:d/c)", ("all", "a/b", "d", "d/c")),
        ("a/any()", ("any", "a", None, None)),
        ("a eq 2016-01-01T07:00Z", ("eq", "a", (1451631600000000, None))),
        ("a eq 2016-01-01T08:00:00 01:00", ("eq", "a", (1451631600000000, None))),
        ("a eq 2016-01-01T07:00Z and b", ("and", ("eq", "a", (1451631600000000, None)), "b")),
        ("a eq 2016-01-01T07:00Z/PT1S", ("eq", "a", (1451631600000000, 1451631601000000))),
        ("a eq 2016-01-01", ("eq", "a", "2016-01-01")),
        ("a eq 07:00", ("eq", "a", "07:00:00")),
        ("a eq 07:00:00.500", ("eq", "a", "07:00:00.5")),
        ("a eq duration'PT1H'", ("eq", "a", 3_600_000_000)),
        ("a eq geography'POINT(1 2)'", ("eq", "a", "POINT(1 2)")),
    ],
)
def test_expressions(text, tree):
    assert shape(parsed(text)) == tree


@pytest.mark.parametrize(
    ("text", "at"),
    [("a eq", 4), ("a eq 'x", 5), ("a ! b", 2), ("(a", 2), ("a)", 1), ("a eq 2016-02-30", 5), ("a/", 2), ("a[b]", 2),
     ("a eq 25:00", 5), ("a eq duration'x'", 5), ("12a", 0), ("a eq 'x' 'y'", 9), ("f(a", 3), ("a/any(d d)", 8)],
)  # fmt: skip
def test_a_fault_knows_where_it_is(text, at):
    with pytest.raises(Fault) as fault:
        parsed(text)
    assert fault.value.at == at


def test_depth_has_a_limit():
    assert parsed("(" * (DEEPEST - 1) + "a" + ")" * (DEEPEST - 1))
    with pytest.raises(Fault, match="levels"):
        parsed("(" * DEEPEST + "a" + ")" * DEEPEST)
    with pytest.raises(Fault, match="levels"):
        parsed("not " * (DEEPEST + 1) + "a")


def test_literals_know_their_kind():
    kinds = [node.right.kind for node in map(parsed, ("a eq 1", "a eq '1'", "a eq 2016-01-01", "a eq false"))]
    assert kinds == [LiteralKind.NUMBER, LiteralKind.STRING, LiteralKind.DATE, LiteralKind.BOOLEAN]


def test_expansions_of_one_relation_are_merged():
    query = read_query("$expand=A/B,A/C($top=1),A($filter=x)")
    (a,) = query.expand
    assert a.query.filter is not None
    assert [(e.relation, e.query.top) for e in a.query.expand] == [("B", None), ("C", 1)]


@pytest.mark.parametrize(
    "text",
    [
        "$filter=a eq 'b;c' and d&$top=3&$count=true&$orderby=x desc,y",
        "$expand=A($filter=a eq ')' or b;$expand=B($top=1;$skip=2),C/D;$count=true)&$select=a,b/c,A",
        "$expand=A($orderby=a;$select=b)",
    ],
)
def test_options_written_into_a_link_read_the_same(text):
    query = read_query(text)
    assert read_query(write_query(query.options())) == query


def refusal(query):
    """The status with which a query string is refused, None if it is not."""
    try:
        read_query(query)
    except RequestError as error:
        return error.status
    return None


def test_a_plus_is_a_space_and_everything_may_be_encoded():
    assert read_query("%24filter=a+eq+%271%2B1%27") == read_query("$filter=a eq '1%2B1'")
    assert read_query("&$top=1&&").top == 1


@given(
    st.text(alphabet=st.sampled_from("ab()[]/,:;='$ \t01.-TZ:*@é\"\\\0%+"), max_size=60)
    | st.text(max_size=40)
)
def test_no_text_breaks_the_parser(text):
    for option in ("$filter", "$orderby", "$select", "$expand", "$top", "$count"):
        assert refusal(f"{option}={text}") in {None, 400, 501}


_WORDS = st.sampled_from(
    ["a", "b/c", "1", "'x'", "null", "true", "(", ")", "eq", "and", "or", "not", "add", "in", "f(", ",", "any(d:", "d/e",
     "2016-01-01T00:00:00Z", "/", "[0]", "$top=1", ";", "A(", "desc"]
)  # fmt: skip


@given(st.lists(_WORDS, max_size=25))
def test_no_sequence_of_words_breaks_the_parser(words):
    for option in ("$filter", "$orderby", "$select", "$expand"):
        assert refusal(f"{option}={' '.join(words)}") in {None, 400, 501}
