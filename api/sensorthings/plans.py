"""From a request's path and query string to a statement that is ready to run, kept for the next of the same shape."""

from collections import OrderedDict
from enum import Enum
from typing import NamedTuple

from api.sensorthings.errors import RequestError
from api.sensorthings.formats import Table, data_array, geojson
from api.sensorthings.options import read_query, write_query
from api.sensorthings.resource import Resource
from api.sensorthings.statements import Compiled, Compiler
from api.sensorthings.syntax import Query, ResultFormat
from citylab.entities import OBSERVATION

_MOST_KEPT = 2_000
_LONGEST_KEPT = 1_000  # characters of a query string


class Form(Enum):
    """What an answer is."""

    COLLECTION = 1
    ENTITY = 2
    PROPERTY = 3
    CSV = 4
    GEOJSON = 5


class Plan(NamedTuple):
    """How a request is answered.

    repeated: the options that a link to the next page repeats; header: the first line of a table.
    """

    form: Form
    statement: Compiled
    repeated: str
    header: bytes = b""


class Plans:
    """Compiles requests and keeps the result, by the path without its ids and the query string."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._kept: OrderedDict[tuple[str, str], Plan] = OrderedDict()

    def plan(self, resource: Resource, query_string: str) -> Plan:
        """The plan of a request. Raises `RequestError`."""
        key = (resource.shape, query_string)
        plan = self._kept.get(key)
        if plan is not None:
            self._kept.move_to_end(key)
            return plan
        plan = self._make(resource, query_string)
        if len(query_string) <= _LONGEST_KEPT:
            self._kept[key] = plan
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return plan

    def _make(self, resource: Resource, query_string: str) -> Plan:
        query = read_query(query_string)
        repeated = write_query(query.options())
        try:
            if query.result_format is not None:
                return self._formatted(resource, query, repeated)
            if resource.of_property is not None or resource.of_id:
                return Plan(Form.PROPERTY, self._compiler.property(resource), "")
            if resource.steps[-1].single:
                return Plan(Form.ENTITY, self._compiler.entity(resource, query), "")
            return Plan(Form.COLLECTION, self._compiler.collection(resource, query), repeated)
        except RecursionError:
            raise RequestError(400, "the query is nested too deeply") from None

    def _formatted(self, resource: Resource, query: Query, repeated: str) -> Plan:
        step = resource.steps[-1]
        if step.single or resource.reference or resource.of_property is not None or resource.of_id:
            raise RequestError(400, "$resultFormat is for collections of entities")
        match query.result_format:
            case ResultFormat.DATA_ARRAY:
                if step.entity_type is not OBSERVATION:
                    raise RequestError(400, "$resultFormat=dataArray is for Observations")
                return Plan(Form.COLLECTION, self._compiler.collection(resource, query, data_array), repeated)
            case ResultFormat.CSV:
                table = Table(step.entity_type, query)
                return Plan(Form.CSV, self._compiler.lines(resource, query, table.line), "", table.header)
            case _:
                statement = geojson(self._compiler, resource, query)
                return Plan(Form.GEOJSON, statement, "")
