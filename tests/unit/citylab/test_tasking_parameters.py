"""SWE Common DataRecords, and values that are held against them."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citylab.tasking_parameters import DEEPEST, check_record, check_values

# OGC 17-079 §7: the example of the standard
LIGHT = {
    "type": "DataRecord",
    "field": [
        {
            "name": "status",
            "label": "On/Off status",
            "description": "Specifies turning the light On or Off",
            "type": "Category",
            "constraint": {"type": "AllowedTokens", "value": ["on", "off"]},
        },
        {
            "name": "color",
            "label": "Light Color",
            "description": "Specifies the light color in RGB HEX format. Example: #FF11A0",
            "type": "Text",
            "constraint": {"type": "AllowedTokens", "pattern": "^#([A-Fa-f0-9]{6}|[A-Fa-f0-9]{3})$"},
        },
    ],
}


def record(*fields: dict, **more) -> dict:
    return {"type": "DataRecord", "field": list(fields)} | more


def field(kind: str, **more) -> dict:
    return {"name": "f", "type": kind} | more


def refused(document) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        check_record(json.dumps(document))
    return str(caught.value)


def unfit(document: dict, values) -> str:
    check_record(json.dumps(document))
    with pytest.raises(ValueError, match=r"\w") as caught:
        check_values(json.dumps(document), json.dumps(values))
    return str(caught.value)


def fits(document: dict, values) -> None:
    check_record(json.dumps(document))
    check_values(json.dumps(document), json.dumps(values))


def test_the_standards_example():
    fits(LIGHT, {"status": "on", "color": "#FF11A0"})
    assert (
        unfit(LIGHT, {"status": "dim", "color": "#FF11A0"})
        == 'status: "dim" is not allowed: one of "on", "off"'
    )
    assert unfit(LIGHT, {"status": "on", "color": "red"}).startswith('color: "red" is not allowed: like ^#')
    assert unfit(LIGHT, {"status": "on"}) == "color: is missing"
    assert (
        unfit(LIGHT, {"status": "on", "color": "#FFF", "x": 1}) == "x: is no field; there are status, color"
    )
    assert unfit(LIGHT, ["on"]) == "is an object with a value for each field"


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ([], "DataRecord"),
        ({"type": "Quantity"}, "DataRecord"),
        ({"type": "DataRecord"}, "field is an array"),
        (record({"type": "Text"}), "field[0] needs a name"),
        (record(field("Text"), field("Text")), "two have the name 'f'"),
        (record(field("Matrix")), "f: has the type 'Matrix'"),
        (record(field("Text", optional="yes")), "optional is true or false"),
        (record(field("Text", label=5)), "label is a string"),
        (record(field("Quantity", uom="m")), "uom is"),
        (record(field("Boolean", constraint={})), "takes no constraint"),
        (record(field("Count", constraint={"type": "AllowedTokens"})), "of the type AllowedValues"),
        (record(field("Count", constraint={"value": [1.5]})), "1.5 is no whole number"),
        (record(field("Count", constraint={"interval": [[1]]})), "an interval is [least, greatest]"),
        (record(field("Count", constraint={"interval": [[2, 1]]})), "the interval [2,1] is empty"),
        (record(field("Count", constraint={"pattern": "1"})), "AllowedValues has no pattern"),
        (record(field("Text", constraint={"interval": [["a", "b"]]})), "AllowedTokens has no interval"),
        (record(field("Text", constraint={"value": "a"})), "value is an array"),
        (record(field("Text", constraint={"pattern": "("})), "the pattern '(' is none of RE2's"),
        (record(field("Text", constraint={"pattern": r"(a)\1"})), "is none of RE2's"),
        (record(field("Text", constraint={"pattern": "a" * 1_001})), "at most 1000 characters"),
        (record(field("Text", constraint={"pattern": "(((a{99}){99}){99}){99}"})), "is none of RE2's"),
        (record(field("Time", constraint={"value": ["noon"]})), "noon"),
        (record(field("Count", constraint={"interval": [[1, 2]] * 101})), "at most 100 intervals"),
        (record(field("DataChoice", item=[])), "at least one item"),
        (record(field("DataArray")), "f/elementType: is an object with a type"),
        (
            record(field("DataArray", elementType={"type": "Text"}, elementCount={"value": -1})),
            "elementCount",
        ),
    ],
)
def test_what_is_no_record_is_named(document, what):
    assert what in refused(document)


def test_nesting_has_a_bound():
    nested = field("Text")
    for _ in range(DEEPEST + 1):
        nested = field("DataRecord", field=[nested])
    assert "deeper" in refused(record(nested))


@pytest.mark.parametrize(
    ("component", "good", "bad"),
    [
        (field("Quantity", uom={"code": "Cel"}), [1, -2.5, 10**30], [True, "1", None, [1]]),
        (field("Count"), [0, 5, 5.0, 10**30], [1.5, True, "1"]),
        (field("Boolean"), [True, False], [0, "true", None]),
        (field("Text"), ["", "x"], [1, None]),
        (field("Category"), ["x"], [1]),
        (field("Time"), ["2026-05-01T07:00:00Z", "2026-05-01T07:00+02:00"], ["noon", 5]),
        (field("Time", uom={"code": "s"}), [5, 2.5], [True]),
        (field("QuantityRange"), [[1, 2], [1, 1]], [[2, 1], [1], 1, ["a", "b"]]),
        (field("CountRange"), [[1, 2]], [[1, 2.5]]),
        (field("CategoryRange"), [["b", "a"]], [[1, 2]]),
        (
            field("TimeRange"),
            [["2026-05-01T07:00:00Z", "2026-05-01T07:00:00Z"]],
            [["2026-05-01T07:00:01Z", "2026-05-01T07:00:00Z"]],
        ),
        (
            field("Quantity", constraint={"value": [7], "interval": [[0, 1], [2, 3]]}),
            [0, 1, 2.5, 7],
            [1.5, 8],
        ),
        (field("CountRange", constraint={"interval": [[0, 9]]}), [[0, 9]], [[0, 10]]),
        (field("Text", constraint={"value": ["x"], "pattern": "a+"}), ["x", "aa"], ["xaa", "aab"]),
        (field("Text", constraint={}), ["x"], []),
        (
            field("Time", constraint={"interval": [["2026-01-01T00:00:00Z", "2026-12-31T00:00:00Z"]]}),
            ["2026-05-01T07:00:00Z"],
            ["2027-05-01T07:00:00Z"],
        ),
        (field("DataArray", elementType={"type": "Count"}), [[], [1, 2]], [[1.5], {}]),
        (field("DataArray", elementType={"type": "Count"}, elementCount={"value": 2}), [[1, 2]], [[1]]),
        (
            field("DataChoice", item=[{"name": "level", "type": "Count"}, {"name": "scene", "type": "Text"}]),
            [{"level": 1}, {"scene": "x"}],
            [{}, {"level": 1, "scene": "x"}, {"other": 1}, {"level": "x"}, 1],
        ),
        (field("DataRecord", field=[{"name": "a", "type": "Count"}]), [{"a": 1}], [{}, {"a": "x"}, 1]),
    ],
)
def test_values_are_of_their_type_and_within_their_constraint(component, good, bad):
    for value in good:
        fits(record(component), {"f": value})
    for value in bad:
        assert unfit(record(component), {"f": value}).startswith("f"), value


def test_what_is_wrong_is_named_by_its_path():
    deep = record(field("DataArray", elementType=record({"name": "level", "type": "Count"})))
    assert unfit(deep, {"f": [{"level": 1}, {"level": "x"}]}) == 'f[1]/level: "x" is no number'


def test_an_optional_field_may_be_missing_and_is_checked_when_it_is_there():
    optional = record(field("Count", optional=True))
    fits(optional, {})
    assert "is no number" in unfit(optional, {"f": "x"})


def test_the_words_of_swe_common_3_are_understood():
    newer = {
        "type": "DataRecord",
        "fields": [field("Count", constraint={"values": [3], "intervals": [[5, 6]]})],
    }
    fits(newer, {"f": 3})
    fits(newer, {"f": 6})
    assert "not allowed" in unfit(newer, {"f": 4})


def test_no_pattern_can_hang_the_service():
    evil = json.dumps(record(field("Text", constraint={"pattern": "(a|aa|a?)*(a*)*b"})))
    check_record(evil)
    began = time.process_time()
    with pytest.raises(ValueError, match="not allowed"):
        check_values(evil, json.dumps({"f": "a" * 200_000}))
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "constraint",
    [
        {"value": [f"v{i}" for i in range(50_000)]},
        {"pattern": "(x+x+)+y|v[0-9]{1,900}"},
    ],
)
def test_no_large_constraint_makes_large_arrays_slow(constraint):
    many = record(field("DataArray", elementType={"type": "Text", "constraint": constraint}))
    began = time.process_time()
    fits(many, {"f": [f"v{i}" for i in range(50_000)]})
    assert time.process_time() - began < 5


_SIMPLE = st.one_of(
    st.fixed_dictionaries({"type": st.just("Count")}).map(lambda c: (c, st.integers())),
    st.just(({"type": "Quantity"}, st.floats(allow_nan=False, allow_infinity=False) | st.integers())),
    st.just(({"type": "Boolean"}, st.booleans())),
    st.just(({"type": "Text"}, st.text(max_size=20))),
    st.lists(st.text(max_size=5), min_size=1, max_size=4).map(
        lambda tokens: (
            {"type": "Category", "constraint": {"type": "AllowedTokens", "value": tokens}},
            st.sampled_from(tokens),
        )
    ),
    st.tuples(st.integers(-1_000, 1_000), st.integers(0, 1_000)).map(
        lambda t: (
            {"type": "Count", "constraint": {"interval": [[t[0], t[0] + t[1]]]}},
            st.integers(t[0], t[0] + t[1]),
        )
    ),
)


def _nested(inner):
    return st.one_of(
        st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=4).map(
            lambda parts: (
                {"type": "DataRecord", "field": [c | {"name": n} for n, (c, _) in parts.items()]},
                st.fixed_dictionaries({n: values for n, (_, values) in parts.items()}),
            )
        ),
        inner.map(
            lambda part: ({"type": "DataArray", "elementType": part[0]}, st.lists(part[1], max_size=3))
        ),
    )


@given(st.data())
def test_what_a_record_describes_fits_it(data):
    component, values = data.draw(st.recursive(_SIMPLE, _nested, max_leaves=10))
    document = record(component | {"name": "f"})
    fits(document, {"f": data.draw(values)})
    assert unfit(document, {}) == "f: is missing"
    assert "is no field" in unfit(document, {"f": None, "g": 1})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["type", "field", "name", "item", "constraint", "value", "interval", "pattern", "uom",
                         "elementType", "elementCount", "optional", "f"]), inner, max_size=6),
    max_leaves=20,
)  # fmt: skip


@given(_JSON, _JSON)
def test_whatever_comes_is_taken_or_refused(document, values):
    try:
        check_record(json.dumps(document))
    except ValueError:
        check_record(json.dumps(LIGHT))
        document = LIGHT
    try:
        check_values(json.dumps(document), json.dumps(values))
    except ValueError:
        return
