"""Who may see what, in one place: every face of the platform asks here before it reads."""

from typing import Protocol

from citylab.entities import EntityType


class Visible(Protocol):
    """Gives the SQL condition under which a row of an entity type's table may be read; "TRUE" if always."""

    def __call__(self, entity_type: EntityType, alias: str) -> str:
        """alias: the name by which the condition refers to the row."""
        ...


def everything(entity_type: EntityType, alias: str) -> str:  # noqa: ARG001
    """Everything is open."""
    return "TRUE"
