"""The requirements of OGC 18-088 and 17-079 that hold, by their URIs; each has tests in `tests/conformance` that name it."""

from collections.abc import Mapping, Sequence
from typing import Any

from citylab.entities import ENTITY_TYPES, TASK, TASKING, EntityTypes

BASE = "http://www.opengis.net/spec/iot_sensing/1.1/req/"
TASKING_BASE = "http://www.opengis.net/spec/iot_tasking/1.0/req/"

DATAMODEL = (
    "datamodel/entity-control-information/common-control-information",
    *(
        f"datamodel/{t.requirement}/{part}"
        for t in ENTITY_TYPES.values()
        if t.requirement and t not in TASKING
        for part in ("properties", "relations")
    ),
)
RESOURCE_PATH = ("resource-path/resource-path-to-entities",)
REQUEST_DATA = (
    "request-data/status-code",
    "request-data/query-status-code",
    "request-data/order",
    "request-data/expand",
    "request-data/select",
    "request-data/orderby",
    "request-data/top",
    "request-data/skip",
    "request-data/count",
    "request-data/filter",
    "request-data/built-in-filter-operations",
    "request-data/built-in-query-functions",
    "request-data/pagination",
)
CREATE_UPDATE_DELETE = (
    "create-update-delete/create-entity",
    "create-update-delete/link-to-existing-entities",
    "create-update-delete/deep-insert",
    "create-update-delete/deep-insert-status-code",
    "create-update-delete/historical-location-auto-creation",
    "create-update-delete/historical-location-manual-creation",
    "create-update-delete/update-entity",
    "create-update-delete/update-entity-put",
    "create-update-delete/update-entity-jsonpatch",
    "create-update-delete/delete-entity",
)
BATCH_REQUEST = ("batch-request/batch-request",)
DATA_ARRAY = ("data-array/data-array",)
MULTI_DATASTREAM = (
    "multi-datastream/properties",
    "multi-datastream/relations",
    "multi-datastream/constraints",
)
CLASSES = {
    "datamodel": DATAMODEL,
    "resource-path": RESOURCE_PATH,
    "create-update-delete": CREATE_UPDATE_DELETE,
    "batch-request": BATCH_REQUEST,
    "data-array": DATA_ARRAY,
    "multi-datastream": MULTI_DATASTREAM,
}
"""Requirements classes of which every requirement holds."""

CREATE_OVER_MQTT = "create-observations-via-mqtt"
RECEIVE_OVER_MQTT = "receive-updates-via-mqtt"
MQTT_CLASSES = {
    CREATE_OVER_MQTT: (f"{CREATE_OVER_MQTT}/observations-creation",),
    RECEIVE_OVER_MQTT: (f"{RECEIVE_OVER_MQTT}/receive-updates",),
}
"""Requirements classes that hold where clients reach a broker."""

TASKING_CLASSES = {
    **{t.requirement: (f"{t.requirement}/properties", f"{t.requirement}/relations") for t in TASKING},
    "create-tasks": ("create-tasks/task-creation",),
}
"""Requirements classes of Part 2, Tasking Core, of which every requirement holds."""

TASKING_MQTT_CLASSES = {
    "create-tasks-via-mqtt": ("create-tasks-via-mqtt/task-creation",),
    RECEIVE_OVER_MQTT: (f"{RECEIVE_OVER_MQTT}/receive-updated",),
}
"""The same where clients reach a broker."""

HELD = (*CLASSES, *REQUEST_DATA, *(name for names in CLASSES.values() for name in names))
EXTENSIONS = (
    "https://fraunhoferiosb.github.io/FROST-Server/extensions/FilteredDelete.html",
    "https://fraunhoferiosb.github.io/FROST-Server/extensions/JsonBatchRequest.html",
)
"""What goes beyond the standard, by the URIs under which clients look for it."""


def server_settings(
    endpoints: Sequence[str] = (), types: EntityTypes = ENTITY_TYPES, *, announced: bool = True
) -> dict[str, Any]:
    """The landing page's `serverSettings`: which requirements hold, and what a client must know of them (§9.2.1).

    endpoints: addresses of the MQTT broker; types: the entities that the service offers; announced: whether updates are
    published over MQTT.
    """
    conformance, over_mqtt = [BASE + name for name in HELD], []
    for base, classes, mqtt_classes in (
        (BASE, {}, MQTT_CLASSES),
        (TASKING_BASE, TASKING_CLASSES, TASKING_MQTT_CLASSES),
    ):
        if base == TASKING_BASE and TASK.name not in types:
            continue
        conformance += [base + name for name in (*classes, *_single(classes))]
        held = {
            name: parts
            for name, parts in mqtt_classes.items()
            if endpoints and (announced or name != RECEIVE_OVER_MQTT)
        }
        conformance += [base + name for name in held]
        over_mqtt += [base + name for name in _single(held)]
    conformance += [*over_mqtt, *EXTENSIONS]
    return {"conformance": conformance} | {uri: {"endpoints": endpoints} for uri in over_mqtt}


def _single(classes: Mapping[str, Sequence[str]]) -> list[str]:
    return [name for names in classes.values() for name in names]
