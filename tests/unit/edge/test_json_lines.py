import msgspec
import pytest

from citylab.errors import ConfigurationError
from citylab.model import SECOND, Quality, Reading
from edge.json_lines import load_things, parse_line

NOW = 1_767_225_600 * SECOND


@pytest.mark.parametrize(
    ("line", "reading"),
    [
        ('{"n":"a","v":21.4}', Reading("a", NOW, 21.4)),
        ('{"n":"a","v":21,"u":"Cel","t":1767225601}', Reading("a", NOW + SECOND, 21.0, "Cel")),
        ('{"n":"a","v":1,"t":1767225600.25}', Reading("a", NOW + 250_000, 1.0)),
        ('{"n":"a","v":true,"t":"2026-01-01T01:00:00+01:00"}', Reading("a", NOW, True)),
        ('{"n":"a","v":"open","quality":"suspect","more":1}', Reading("a", NOW, "open", None, Quality.SUSPECT)),
    ],
)  # fmt: skip
def test_a_line_is_a_reading(line, reading):
    assert parse_line(line.encode(), NOW) == reading


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("21.4", "Expected `object`"),
        ('{"v":21.4}', "missing required field `n`"),
        ('{"n":"a"}', "missing required field `v`"),
        ('{"n":"a","v":null}', "got `null`"),
        ('{"n":"a","v":1,"t":"yesterday"}', "no ISO 8601"),
        ('{"n":"a","v":1,"t":1767225600000}', "counts seconds since 1970"),
        ('{"n":"a","v":1,"quality":"fine"}', "it may be good, suspect, bad"),
        ('{"n":"a","v":1', "truncated"),
        ('{"n":"\\ud800","v":1}', "surrogate"),
    ],
)  # fmt: skip
def test_a_line_that_is_none_says_why(line, why):
    with pytest.raises(ValueError, match=why):
        parse_line(line.encode(), NOW)


STREAM = {"name": "NO2", "properties": {"streamName": "a"}}
THING = {"name": "lamp", "Locations": [{}], "Datastreams": [STREAM]}


def test_a_descriptor_is_a_thing_or_several(tmp_path):
    file = tmp_path / "lamp.json"
    for document in (THING, [THING]):
        file.write_bytes(msgspec.json.encode(document))
        assert load_things(file) == [THING]


def test_a_thing_that_can_only_be_told_something_needs_no_datastreams(tmp_path):
    file = tmp_path / "lamp.json"
    switch = {"name": "switch", "Locations": [{}], "TaskingCapabilities": [{"name": "Turn"}]}
    file.write_bytes(msgspec.json.encode(switch))
    assert load_things(file) == [switch]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ([], "must hold a Thing"),
        ([1], "must hold a Thing"),
        (THING | {"Locations": []}, "the Thing 'lamp' .* needs Locations"),
        (THING | {"Datastreams": []}, "needs Datastreams"),
        (THING | {"Datastreams": [STREAM, {"name": "O3"}]}, "without properties.streamName"),
    ],
)
def test_a_descriptor_that_lacks_something_is_refused_at_once(tmp_path, document, why):
    file = tmp_path / "lamp.json"
    file.write_bytes(msgspec.json.encode(document))

    with pytest.raises(ConfigurationError, match=why):
        load_things(file)
