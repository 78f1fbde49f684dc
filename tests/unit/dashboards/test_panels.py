import json
import re
from itertools import combinations

import pytest

from dashboards.overview import DASHBOARDS, OVERVIEW
from dashboards.panels import COLUMNS, Format, Kind, Panel, Place, Source, filled_in

SOURCE = Source("the-source")
PANELS = [panel for dashboard in DASHBOARDS for panel in dashboard.panels]
QUERIES = [panel.sql for panel in PANELS] + [variable.sql for d in DASHBOARDS for variable in d.variables]


def overlap(a: Place, b: Place) -> bool:
    beside = a.x + a.width <= b.x or b.x + b.width <= a.x
    above = a.y + a.height <= b.y or b.y + b.height <= a.y
    return not (beside or above)


def test_panels_lie_within_the_grid_and_not_on_each_other() -> None:
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            assert panel.place.x + panel.place.width <= COLUMNS, panel.title
        for one, other in combinations(dashboard.panels, 2):
            assert not overlap(one.place, other.place), (one.title, other.title)


@pytest.mark.parametrize("sql", QUERIES)
def test_a_query_reads_the_views_of_grafanas_schema_alone(sql: str) -> None:
    named = re.findall(r"(?:FROM|JOIN)\s+([\w.]+)", re.sub(r"extract\(epoch FROM[^)]*\)", "", sql))

    assert named
    assert all(name.startswith("grafana.") for name in named), named
    assert ";" not in sql


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_chart_over_time_filters_and_groups_by_the_pages_range(panel: Panel) -> None:
    if panel.kind is Kind.TIME_SERIES:
        assert "$__timeFilter(" in panel.sql
        assert "$__timeGroupAlias(" in panel.sql
        assert panel.format is Format.TIME_SERIES
    else:
        assert panel.format is Format.TABLE


def test_the_json_is_what_grafana_takes() -> None:
    model = OVERVIEW.json(SOURCE)

    assert json.loads(json.dumps(model)) == model
    assert model["uid"] == "citylab-overview"
    assert [panel["id"] for panel in model["panels"]] == list(range(1, len(OVERVIEW.panels) + 1))
    assert all(panel["datasource"] == {"uid": "the-source", "type": "grafana-postgresql-datasource"}
               for panel in model["panels"])  # fmt: skip
    assert all(panel["description"] for panel in model["panels"])
    (variable,) = model["templating"]["list"]
    assert variable["name"] == "datastream"
    assert OVERVIEW.json(SOURCE) == model


def test_what_a_city_engineer_looks_for_is_there() -> None:
    titles = {panel.title for panel in OVERVIEW.panels}

    assert {
        "Newest values", "What is unwell", "Ingest ledger", "Rejected, by reason", "Completeness",
        "Observations per minute", "${datastream:text}",
    } <= titles  # fmt: skip


def test_variables_are_filled_in_and_macros_stay() -> None:
    sql = "SELECT $__timeGroupAlias(time, $__interval) WHERE a = '$datastream' AND b = ${datastream} AND $__timeFilter(x)"

    assert filled_in(sql, {"datastream": "7"}) == (
        "SELECT $__timeGroupAlias(time, $__interval) WHERE a = '7' AND b = 7 AND $__timeFilter(x)"
    )
    assert filled_in("'${datastream:text}'", {"datastream": "it's"}) == "'it''s'"
    with pytest.raises(KeyError):
        filled_in("$other", {"datastream": "7"})
