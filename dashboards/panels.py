"""Grafana dashboards as values, and the JSON that Grafana takes. Panels read the views of schema `grafana` alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

DATA_SOURCE_TYPE = "grafana-postgresql-datasource"
SCHEMA_VERSION = 39
COLUMNS = 24  # of Grafana's grid
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(?!__)(\w+))")


class Kind(StrEnum):
    """Grafana's names of the visualisations that are used."""

    TIME_SERIES = "timeseries"
    TABLE = "table"
    STAT = "stat"
    BARS = "barchart"


class Format(StrEnum):
    """What a query's rows become."""

    TIME_SERIES = "time_series"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Source:
    """A data source, by the uid that panels name."""

    uid: str
    type: str = DATA_SOURCE_TYPE

    def json(self) -> dict[str, Any]:
        """The reference that panels and queries carry."""
        return {"uid": self.uid, "type": self.type}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a panel stands: x and width in 24 columns, y and height in rows of 30 pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Colour:
    """From `value` on (None: from the start) a number has this colour."""

    value: float | None
    colour: str


@dataclass(frozen=True, slots=True)
class Field:
    """How one column or series is shown: a unit of Grafana's, decimals, a width in pixels, colours by word."""

    name: str
    unit: str | None = None
    decimals: int | None = None
    width: int | None = None
    words: Mapping[str, str] | None = None

    def json(self) -> dict[str, Any]:
        """A field override."""
        properties: list[dict[str, Any]] = []
        if self.unit is not None:
            properties.append({"id": "unit", "value": self.unit})
        if self.decimals is not None:
            properties.append({"id": "decimals", "value": self.decimals})
        if self.width is not None:
            properties.append({"id": "custom.width", "value": self.width})
        if self.words is not None:
            options = {
                word: {"color": colour, "index": n} for n, (word, colour) in enumerate(self.words.items())
            }
            properties.append({"id": "mappings", "value": [{"type": "value", "options": options}]})
            properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
        return {"matcher": {"id": "byName", "options": self.name}, "properties": properties}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One visualisation of one query. `least_interval` is the narrowest group that `$__interval` becomes."""

    title: str
    description: str
    kind: Kind
    sql: str
    place: Place
    unit: str | None = None
    decimals: int | None = None
    least: float | None = None
    greatest: float | None = None
    colours: Sequence[Colour] = ()
    fields: Sequence[Field] = ()
    least_interval: str | None = None

    @property
    def format(self) -> Format:
        """Series for a chart over time, rows for everything else."""
        return Format.TIME_SERIES if self.kind is Kind.TIME_SERIES else Format.TABLE

    def query(self, source: Source) -> dict[str, Any]:
        """The query as a panel carries it and as `/api/ds/query` takes it."""
        return {
            "refId": "A",
            "datasource": source.json(),
            "rawQuery": True,
            "editorMode": "code",
            "format": str(self.format),
            "rawSql": self.sql,
        }

    def json(self, number: int, source: Source) -> dict[str, Any]:
        """The panel, the number-th of its dashboard."""
        panel = {
            "id": number,
            "type": str(self.kind),
            "title": self.title,
            "description": self.description,
            "datasource": source.json(),
            "gridPos": {"x": self.place.x, "y": self.place.y, "w": self.place.width, "h": self.place.height},
            "targets": [self.query(source)],
            "fieldConfig": {
                "defaults": self._defaults(),
                "overrides": [field.json() for field in self.fields],
            },
            "options": self._options(),
        }
        return panel | ({"interval": self.least_interval} if self.least_interval else {})

    def _defaults(self) -> dict[str, Any]:
        given = {"unit": self.unit, "decimals": self.decimals, "min": self.least, "max": self.greatest}
        defaults: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.colours:
            steps = [{"value": step.value, "color": step.colour} for step in self.colours]
            defaults["thresholds"] = {"mode": "absolute", "steps": steps}
            defaults["color"] = {"mode": "thresholds"}
        if self.kind is Kind.TIME_SERIES:
            defaults["custom"] = {
                "lineWidth": 2,
                "fillOpacity": 8,
                "showPoints": "auto",
                "spanNulls": False,  # a hole is to be seen
            }
        return defaults

    def _options(self) -> dict[str, Any]:
        match self.kind:
            case Kind.TIME_SERIES:
                return {
                    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                    "tooltip": {"mode": "multi", "sort": "desc"},
                }
            case Kind.STAT:
                calculation = {"calcs": ["lastNotNull"], "fields": "", "values": False}
                return {
                    "reduceOptions": calculation,
                    "colorMode": "value",
                    "graphMode": "none",
                    "textMode": "auto",
                }
            case Kind.BARS:
                return {"orientation": "horizontal", "legend": {"showLegend": False}, "showValue": "always"}
            case Kind.TABLE:
                return {"showHeader": True, "cellHeight": "sm"}


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard; its query gives `__text` and `__value`."""

    name: str
    label: str
    sql: str

    def query(self, source: Source) -> dict[str, Any]:
        """The query as `/api/ds/query` takes it."""
        return {"refId": "A", "datasource": source.json(), "format": str(Format.TABLE), "rawSql": self.sql}

    def json(self, source: Source) -> dict[str, Any]:
        """The template variable. It is asked again when the time range changes, so new datastreams appear."""
        return {
            "name": self.name,
            "label": self.label,
            "type": "query",
            "datasource": source.json(),
            "query": self.sql,
            "definition": self.sql,
            "refresh": 2,
            "sort": 0,
            "multi": False,
            "includeAll": False,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """A dashboard; its uid is its address and its identity."""

    uid: str
    title: str
    description: str
    panels: Sequence[Panel]
    variables: Sequence[Variable] = ()
    tags: Sequence[str] = ("citylab",)
    since: str = "now-6h"
    refresh: str = "10s"

    def json(self, source: Source) -> dict[str, Any]:
        """The model that `POST /api/dashboards/db` takes."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": list(self.tags),
            "timezone": "browser",
            "editable": True,
            "schemaVersion": SCHEMA_VERSION,
            "refresh": self.refresh,
            "time": {"from": self.since, "to": "now"},
            "templating": {"list": [variable.json(source) for variable in self.variables]},
            "panels": [panel.json(number, source) for number, panel in enumerate(self.panels, 1)],
        }


def filled_in(sql: str, values: Mapping[str, str]) -> str:
    """Put values in place of a dashboard's variables, as Grafana's page does; macros (`$__...`) stay.

    Raises KeyError for a variable that nobody gave.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return match[0] if name.startswith("__") else values[name].replace("'", "''")

    return _VARIABLE.sub(value, sql)
