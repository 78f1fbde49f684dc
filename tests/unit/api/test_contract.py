"""The OpenAPI description and its page, made from the entity table."""

from jsonschema import Draft202012Validator

from api.openapi import complete
from api.reference import reference_page
from citylab.entities import ENTITY_TYPES


def document():
    return complete({"openapi": "3.1.0", "info": {"title": "T", "version": "1"}})


def test_every_reference_leads_somewhere():
    whole = document()

    def references(node):
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "$ref":
                    yield value
                else:
                    yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    for reference in references(whole):
        node = whole
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_the_schemas_are_schemas_and_fit_the_documents():
    schemas = document()["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schemas["NewThing"] | {"components": {"schemas": schemas}})
    assert validator.is_valid({"name": "n", "description": "d", "properties": {"a": 1}})
    assert not validator.is_valid({"name": "n"})
    assert not validator.is_valid({"name": 5, "description": "d"})


def test_what_is_computed_is_not_asked_for():
    schemas = document()["components"]["schemas"]
    assert "observedArea" in schemas["Datastream"]["properties"]
    assert "observedArea" not in schemas["NewDatastream"]["properties"]
    assert set(schemas["NewDatastream"]["required"]) >= {"Thing", "Sensor", "ObservedProperty", "name"}


def test_the_page_names_everything_and_loads_nothing():
    page = reference_page(document())
    for entity_type in ENTITY_TYPES.values():
        assert f"/v1.1/{entity_type.set_name}({{id}})" in page
        assert f'id="{entity_type.name}"' in page
    assert "src=" not in page
    assert "<script" not in page
    assert "@import" not in page


def test_the_page_escapes_what_it_shows():
    hostile = {
        "openapi": "3.1.0",
        "info": {"title": "<script>", "version": "1"},
        "paths": {},
        "components": {},
    }
    assert "<script>" not in reference_page(hostile)
