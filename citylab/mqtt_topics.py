"""The topics of the SensorThings MQTT extension (OGC 18-088 §14): where entities are created, and what is no create."""

import re
from typing import NamedTuple

from citylab.drafts import LARGEST_ID
from citylab.entities import ENTITY_TYPES, EntityType, EntityTypes, Relation, target
from citylab.errors import Rejected
from citylab.model import Reason

ROOT = "v1.1/"
CREATABLE = ("Observations", "Tasks")
"""The sets in which a message creates an entity (§14.1: Observations alone; OGC 17-079: Tasks too)."""
CREATION_FILTERS = tuple(f"{ROOT}{way}{name}" for name in CREATABLE for way in ("", "+/"))
"""What to subscribe to for creates: the sets, and the navigation links of one entity that lead to them."""

_OF_PARENT = re.compile(r"(\w+)\((\d{1,19})\)/(\w+)")
# An entity as `entity_json` writes it begins with its self link and id, whatever the service's address is.
_ANNOUNCEMENT = re.compile(
    rb'\{"@iot\.selfLink":"[^"]*/v1\.1/(?:%s)\((\d+)\)","@iot\.id":\1[,}]' % "|".join(CREATABLE).encode()
)


class CreationTarget(NamedTuple):
    """What a topic creates: an entity of a type, under a parent's navigation link or (None, 0) in the set itself."""

    entity_type: EntityType
    relation: Relation | None = None
    parent: int = 0


def creation_target(topic: str, types: EntityTypes = ENTITY_TYPES) -> CreationTarget:
    """What a message on a topic creates. Raises `Rejected` when nothing can be created there.

    types: the entities that are offered.
    """
    sets = {t.set_name: t for t in types.values()}
    creatable = [name for name in CREATABLE if name in sets]
    path = topic.removeprefix(ROOT)
    if path in creatable:
        return CreationTarget(sets[path])
    if found := _OF_PARENT.fullmatch(path):
        set_name, parent, name = found[1], int(found[2]), found[3]
        relation = sets[set_name].relations.get(name) if set_name in sets else None
        if relation and relation.many and target(relation).set_name in creatable and 0 < parent <= LARGEST_ID:
            return CreationTarget(target(relation), relation, parent)
    raise Rejected(
        Reason.MALFORMED,
        f"nothing is created at {topic[:200]}: it is {', '.join(ROOT + name for name in creatable)}, or an existing"
        f" entity's link to it such as {ROOT}Datastreams(1)/Observations",
    )


def is_announcement(payload: bytes) -> bool:
    """Whether a payload is an entity that exists already, as we publish it on the topics on which others create.

    MQTT 3.1.1 gives a client its own messages back. This knows them by their form alone, so that services which disagree
    about the platform's address cannot create each other's announcements for ever.
    """
    return _ANNOUNCEMENT.match(payload) is not None
