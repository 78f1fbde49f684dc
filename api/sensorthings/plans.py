"""From a request's path and query string to a statement that is ready to run, kept for the next of the same shape."""

from collections import OrderedDict
from enum import Enum
from typing import NamedTuple

from api.sensorthings.errors import RequestError
from api.sensorthings.options import read_query, write_query
from api.sensorthings.resource import Resource
from api.sensorthings.statements import Compiled, Compiler

_MOST_KEPT = 2_000
_LONGEST_KEPT = 1_000  # characters of a query string


class Form(Enum):
    """What an answer is."""

    COLLECTION = 1
    ENTITY = 2
    PROPERTY = 3


class Plan(NamedTuple):
    """How a request is answered. repeated: the options that a link to the next page repeats."""

    form: Form
    statement: Compiled
    repeated: str


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
            if resource.of_property is not None or resource.of_id:
                return Plan(Form.PROPERTY, self._compiler.property(resource), "")
            if resource.steps[-1].single:
                return Plan(Form.ENTITY, self._compiler.entity(resource, query), "")
            return Plan(Form.COLLECTION, self._compiler.collection(resource, query), repeated)
        except RecursionError:
            raise RequestError(400, "the query is nested too deeply") from None
