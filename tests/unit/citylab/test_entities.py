import re
from importlib import resources

from citylab.entities import ENTITY_TYPES, SETS, Kind, target


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
    text = (resources.files("citylab.adapters.migrations") / "0001_store.sql").read_text()
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


def test_the_standard_has_nine_sets():
    assert len(SETS) == 9
