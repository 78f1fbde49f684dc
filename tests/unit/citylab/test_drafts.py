import contextlib
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citylab.drafts import Draft, Result, attach, read_changes, read_draft
from citylab.entities import DATASTREAM, ENTITY_TYPES, OBSERVATION, SENSOR, THING
from citylab.errors import Rejected


def refusal(entity_type, text, **options):
    with pytest.raises(Rejected) as rejected:
        read_draft(entity_type, text.encode(), **options)
    assert rejected.value.reason == "malformed"
    return rejected.value.detail


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6", 6.0),
        ("6.0", 6.0),
        ("-0.50", -0.5),
        ("1e3", 1000.0),
        ("12345678901234567890123", 12345678901234567890123.0),
    ],
)
def test_a_number_keeps_its_text(text, number):
    draft = read_draft(OBSERVATION, f'{{"Datastream": {{"@iot.id": 1}}, "result": {text} }}'.encode())
    assert draft.values["result"] == Result(number, text)


@pytest.mark.parametrize("text", ["null", "true", '"6"', "[1]", '{"a":1}', "1e999"])
def test_a_result_that_is_no_number(text):
    draft = read_draft(OBSERVATION, f'{{"Datastream": {{"@iot.id": 1}}, "result": {text}}}'.encode())
    result = draft.values["result"]
    assert isinstance(result, Result)
    assert math.isnan(result.number)
    assert result.json == text


def test_links_and_new_entities_at_any_depth():
    draft = read_draft(
        THING,
        b'{"name": "t", "description": "d", "Locations": [{"@iot.id": 5}, {"name": "l", "description": "d",'
        b' "encodingType": "e", "location": {}, "Things": [{"@iot.id": "7"}]}]}',
    )
    link, place = draft.links["Locations"]
    assert link == 5
    assert isinstance(place, Draft)
    assert place.links == {"Things": [7]}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"name": "s"}', "description"),
        (
            '{"Datastreams": [{"name": "d"}], "name": "s", "description": "d", "encodingType": "e", "metadata": 1}',
            "Datastreams[0]",
        ),
        ('{"name": "s", "description": "d", "encodingType": "e", "metadata": null}', "metadata"),
        ('{"colour": 1}', "colour"),
    ],
)
def test_a_refusal_says_where(text, part):
    assert part in refusal(SENSOR, text)


def test_the_entity_around_cannot_be_named_again():
    inner = '{"name": "d", "description": "d", "observationType": "o", "unitOfMeasurement": {}, "Thing": {"@iot.id": 1},'
    inner += '"Sensor": {"@iot.id": 1}, "ObservedProperty": {"@iot.id": 1}}'
    text = f'{{"name": "t", "description": "d", "Datastreams": [{inner}]}}'
    assert "Thing" in refusal(THING, text)


def test_the_parent_of_the_address_counts_as_named():
    relation = DATASTREAM.relations["Observations"]
    draft = read_draft(OBSERVATION, b'{"result": 1}', parent=relation)
    attach(draft, relation, 5)
    assert draft.links == {"Datastream": [5]}
    draft = read_draft(OBSERVATION, b'{"result": 1, "Datastream": {"@iot.id": 6}}', parent=relation)
    with pytest.raises(Rejected):
        attach(draft, relation, 5)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "description",
                    "location",
                    "Locations",
                    "Things",
                    "Datastreams",
                    "@iot.id",
                    "result",
                    "x",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from(list(ENTITY_TYPES.values())), _JSON)
def test_no_document_breaks_the_reader(entity_type, document):
    with contextlib.suppress(Rejected):
        read_draft(entity_type, msgspec.json.encode(document))


@given(st.sampled_from(list(ENTITY_TYPES.values())), st.binary(max_size=50))
def test_no_bytes_break_the_reader(entity_type, document):
    with pytest.raises(Rejected):
        read_draft(entity_type, document)


def test_a_patch_names_what_it_changes_and_may_only_link():
    changes = read_changes(
        THING, b'{"name": "n", "@iot.id": 9, "@iot.selfLink": "x", "Locations": [{"@iot.id": 3}]}'
    )
    assert (changes.values, changes.links) == ({"name": "n"}, {"Locations": [3]})
    assert read_changes(THING, b'{"properties": null}').values == {"properties": None}


def test_a_put_unsets_what_it_does_not_name_and_needs_what_is_mandatory():
    assert read_changes(THING, b'{"name": "n", "description": "d"}', replace=True).values == {
        "name": "n",
        "description": "d",
        "properties": None,
    }
    with pytest.raises(Rejected, match="needs its description"):
        read_changes(THING, b'{"name": "n"}', replace=True)


@pytest.mark.parametrize(
    "document",
    [
        b'{"name": null}',
        b'{"nom": "n"}',
        b'{"Locations": [{"name": "l"}]}',
        b'{"Locations": {"@iot.id": 1}}',
        b"[]",
        b"",
    ],
)
def test_a_patch_that_cannot_be_is_refused(document):
    with pytest.raises(Rejected):
        read_changes(THING, document)
