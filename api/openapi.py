"""The OpenAPI 3.1 description of SensorThings, made from the entity table, and the other faces' documents."""

from collections.abc import Iterator
from typing import Any

import msgspec

from api.aggregates import Aggregates, Line
from api.ledger import LedgerPage
from api.rejections import RejectionPage, RejectionWithPayload
from api.sensorthings.requests import ROOT
from api.sensorthings.requirements import BASE, TASKING_BASE
from api.sensorthings.statements import LARGEST_PAGE
from citylab.entities import ENTITY_TYPES, TASK, EntityType, EntityTypes, Kind, Property, Relation
from citylab.ledger import StreamAccount
from citylab.rejections import Replay

_TAG = "SensorThings"
_ANY_JSON = {"description": "Any JSON value."}
_TIME = {"type": "string", "examples": ["2026-05-01T07:00:00Z"]}
_INTERVAL = {"type": "string", "examples": ["2026-05-01T07:00:00Z/2026-05-01T08:00:00Z"]}
_SCHEMAS: dict[Kind, dict[str, Any]] = {
    Kind.TEXT: {"type": "string"},
    Kind.JSON: _ANY_JSON,
    Kind.OBJECT: {"type": "object"},
    Kind.ARRAY: {"type": "array"},
    Kind.INSTANT: _TIME,
    Kind.TIME: _TIME,
    Kind.INTERVAL: _INTERVAL,
    Kind.RESULT: _ANY_JSON,
    Kind.QUALITY: _ANY_JSON,
}
_OPTIONS = {
    "$filter": (
        "string",
        "Which entities: an expression such as `result gt 20 and Datastream/name eq 'NO2'`.",
    ),
    "$orderby": ("string", "In which order: properties, each with `asc` or `desc`."),
    "$top": ("integer", f"How many entities a page has, at most {LARGEST_PAGE}."),
    "$skip": ("integer", "How many entities to leave out at the beginning."),
    "$count": ("boolean", "Whether to give the number of all entities that match as `@iot.count`."),
    "$select": ("string", "Which properties an entity shows."),
    "$expand": (
        "string",
        "Which related entities to show along, each with options of its own in parentheses.",
    ),
    "$skiptoken": ("string", "Where the next page goes on: part of `@iot.nextLink`, never written by hand."),
}
_SINGLE_OPTIONS = ("$select", "$expand")
_DOCUMENTS = (LedgerPage, StreamAccount, RejectionPage, RejectionWithPayload, Replay, Aggregates, Line)


def complete(document: dict[str, Any], types: EntityTypes = ENTITY_TYPES) -> dict[str, Any]:
    """Add SensorThings to what the other routes declare."""
    paths = document.setdefault("paths", {})
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(_schemas(types))
    components.setdefault("parameters", {}).update(_parameters())
    paths[ROOT] = {
        "get": _operation("The sets, and which requirements hold", {"200": _json({"type": "object"})})
    }
    for entity_type in types.values():
        paths.update(_paths(entity_type))
    tags = document.setdefault("tags", [])
    tags.append({"name": _TAG, "description": _about(types)})
    return document


def _about(types: EntityTypes) -> str:
    tasking = f" Part 2: Tasking. {TASKING_BASE}" if TASK.name in types else ""
    return f"OGC SensorThings API 1.1, Part 1: Sensing. {BASE}{tasking}"


def _parameters() -> dict[str, Any]:
    found: dict[str, Any] = {
        name.removeprefix("$"): {
            "name": name,
            "in": "query",
            "description": about,
            "schema": {"type": kind, **({"minimum": 0} if kind == "integer" else {})},
        }
        for name, (kind, about) in _OPTIONS.items()
    }
    found["id"] = {
        "name": "id", "in": "path", "required": True, "description": "The entity's `@iot.id`.",
        "schema": {"type": "integer", "format": "int64", "minimum": 1},
    }  # fmt: skip
    found["If-Match"] = {
        "name": "If-Match", "in": "header", "description": "The ETag of the version that may be changed.",
        "schema": {"type": "string"},
    }  # fmt: skip
    return found


def _schemas(types: EntityTypes) -> dict[str, Any]:
    schemas: dict[str, Any] = {
        "Error": {
            "type": "object",
            "required": ["code", "type", "message"],
            "properties": {
                "code": {"type": "integer"},
                "type": {"type": "string"},
                "message": {"type": "string", "description": "What happened, to what, and what to do."},
            },
        },
        "Link": {
            "type": "object",
            "required": ["@iot.id"],
            "properties": {"@iot.id": {"type": "integer", "format": "int64"}},
        },
    }
    for entity_type in types.values():
        schemas[entity_type.name] = _read_schema(entity_type)
        schemas[f"New{entity_type.name}"] = _create_schema(entity_type)
        schemas[f"Changed{entity_type.name}"] = _change_schema(entity_type)
    _, others = msgspec.json.schema_components(_DOCUMENTS, ref_template="#/components/schemas/{name}")
    return schemas | others


def _property_schema(known: Property) -> dict[str, Any]:
    schema = _SCHEMAS[known.kind] | {"description": known.about}
    if known.nullable and "type" in schema:
        schema["type"] = [schema["type"], "null"]
    return schema


def _read_schema(entity_type: EntityType) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "@iot.id": {"type": "integer", "format": "int64"},
        "@iot.selfLink": {"type": "string", "format": "uri"},
    }
    properties |= {p.name: _property_schema(p) for p in entity_type.properties.values()}
    for relation in entity_type.relations.values():
        properties[f"{relation.name}@iot.navigationLink"] = {"type": "string", "format": "uri"}
    required = [p.name for p in entity_type.properties.values() if p.always]
    return {
        "type": "object",
        "description": entity_type.about,
        "required": ["@iot.id", "@iot.selfLink", *required],
        "properties": properties,
    }


def _create_schema(entity_type: EntityType) -> dict[str, Any]:
    properties = {p.name: _property_schema(p) for p in entity_type.properties.values() if p.given}
    for relation in entity_type.relations.values():
        properties[relation.name] = _relation_schema(relation)
    required = [p.name for p in entity_type.properties.values() if p.required]
    required += [r.name for r in entity_type.relations.values() if r.required]
    return {
        "type": "object",
        "description": entity_type.about,
        "required": required,
        "properties": properties,
    }


def _change_schema(entity_type: EntityType) -> dict[str, Any]:
    properties = {p.name: _property_schema(p) for p in entity_type.properties.values() if p.given}
    link = _schema("Link")
    for relation in entity_type.relations.values():
        properties[relation.name] = {"type": "array", "items": link} if relation.many else link
    about = "What changes. A PUT names every mandatory property, and unsets the optional ones that it does not name."
    return {"type": "object", "description": about, "properties": properties}


def _relation_schema(relation: Relation) -> dict[str, Any]:
    # What a document holds inside another need not name the one around it, which JSON Schema cannot say here.
    one = {"anyOf": [_schema("Link"), {"type": "object", "description": f"A new {relation.target}."}]}
    return {"type": "array", "items": one} if relation.many else one


def _paths(entity_type: EntityType) -> Iterator[tuple[str, Any]]:
    """The routes of an entity type, each with its operations."""
    name, many = entity_type.name, entity_type.set_name
    yield (
        f"{ROOT}/{many}",
        {
            "get": _operation(
                f"{many}: a page", {"200": _json(_page(entity_type))}, [_parameter(o) for o in _OPTIONS]
            ),
            "post": _operation(
                f"Create a {name}",
                {
                    "201": _json(_schema(name)) | {"headers": _LOCATION},
                    "409": _error("It contradicts what is there."),
                },
                body=_schema(f"New{name}"),
            ),
            "delete": _operation(
                f"Delete the {many} that $filter matches", {"200": _DONE}, [_parameter("$filter")]
            ),
        },
    )
    single = [{"$ref": "#/components/parameters/id"}, *(_parameter(o) for o in _SINGLE_OPTIONS)]
    not_found = {"404": _error("There is no such entity.")}
    conditions = [_parameter("If-Match")]
    changed = {"200": _json(_schema(name)), "412": _error("It is not the version that If-Match names.")}
    change: dict[str, Any] = {"body": _schema(f"Changed{name}"), "parameters": [single[0], *conditions]}
    patch = _operation(f"Change properties and links of a {name}", changed | not_found, **change)
    patch["requestBody"]["content"]["application/json-patch+json"] = {"schema": _JSON_PATCH}
    yield (
        f"{ROOT}/{many}({{id}})",
        {
            "get": _operation(f"One {name}", {"200": _json(_schema(name))} | not_found, single),
            "patch": patch,
            "put": _operation(f"Replace the properties of a {name}", changed | not_found, **change),
            "delete": _operation(
                f"Delete a {name}, and what cannot be without it",
                {"200": _DONE, "412": changed["412"]} | not_found,
                [single[0], *conditions],
            ),
        },
    )
    for relation in entity_type.relations.values():
        target = ENTITY_TYPES[relation.target]
        content = _page(target) if relation.many else _schema(target.name)
        options = list(_OPTIONS) if relation.many else list(_SINGLE_OPTIONS)
        yield (
            f"{ROOT}/{many}({{id}})/{relation.name}",
            {
                "get": _operation(
                    f"{relation.name} of a {name}",
                    {"200": _json(content)} | not_found,
                    [single[0], *(_parameter(o) for o in options)],
                )
            },
        )


_DONE = {"description": "Done."}
_JSON_PATCH = {"type": "array", "items": {"type": "object"}, "description": "RFC 6902."}
_LOCATION = {"Location": {"description": "Its self link.", "schema": {"type": "string", "format": "uri"}}}


def _page(entity_type: EntityType) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["value"],
        "properties": {
            "@iot.count": {"type": "integer"},
            "@iot.nextLink": {"type": "string", "format": "uri"},
            "value": {"type": "array", "items": _schema(entity_type.name)},
        },
    }


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(option: str) -> dict[str, Any]:
    return {"$ref": f"#/components/parameters/{option.removeprefix('$')}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "As asked for.", "content": {"application/json": {"schema": schema}}}


def _error(about: str) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": _schema("Error")}}}


def _operation(
    summary: str,
    responses: dict[str, Any],
    parameters: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    operation: dict[str, Any] = {"tags": [_TAG], "summary": summary}
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    operation["responses"] = responses | {"400": _error("It is malformed; the message says where.")}
    return operation
