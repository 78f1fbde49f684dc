import re

from citylab.adapters.migrations import migrations
from citylab.entities import ENTITY_TYPES, SETS, TASKING, THING, Kind, target, without


def test_every_relation_has_its_other_side():
    for entity_type in ENTITY_TYPES.values():
        for relation in entity_type.relations.values():
            other = target(relation).relations[relation.inverse]
            assert target(other) is entity_type
            assert other.inverse == relation.name
            assert relation.many or other.many
            if relation.link:
                assert other.link is not None
                assert (relation.link.own, relation.link.other) == (other.link.other, other.link.own)
            else:
                assert relation.column == other.column


def test_the_table_names_columns_that_the_schema_has():
    text = "".join(migration.text for migration in migrations())
    tables = dict(re.findall(r"CREATE TABLE (\w+) \((.*?)\n\)", text, re.DOTALL))
    for entity_type in ENTITY_TYPES.values():
        for known in entity_type.properties.values():
            table = "latest" if known.computed else entity_type.table
            for column in known.columns:
                assert re.search(rf"^\s+{column} ", tables[table], re.MULTILINE), (table, column)
        for relation in entity_type.relations.values():
            table = target(relation).table if relation.many else entity_type.table
            if relation.link:
                assert relation.link.own in tables[relation.link.name]
            else:
                assert relation.column in tables[table]


def test_kinds_have_the_columns_they_need():
    two = {Kind.TIME, Kind.INTERVAL, Kind.RESULT, Kind.QUALITY}
    for entity_type in ENTITY_TYPES.values():
        for known in entity_type.properties.values():
            assert len(known.columns) == (2 if known.kind in two else 1), known


def test_the_standard_has_nine_sets_and_tasking_three():
    assert len(SETS) == 9 + 3


def test_a_table_can_leave_tasking_out_and_nothing_else():
    sensing = without(*TASKING)

    assert [t.name for t in ENTITY_TYPES.values() if t.name not in sensing] == [t.name for t in TASKING]
    thing = sensing["Thing"]
    assert [*thing.relations, "TaskingCapabilities"] == [*THING.relations]
    assert all(target(r, sensing) in sensing.values() for t in sensing.values() for r in t.relations.values())
    assert thing == THING
    assert all(t is ENTITY_TYPES[name] for name, t in sensing.items() if name != "Thing")
