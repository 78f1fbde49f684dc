"""`$filter` (OGC 18-088 §9.3.3.5)."""

import pytest

pytestmark = pytest.mark.usefixtures("city")


def things(api, city, expression):
    found = api.ids(f"/Things?$filter={expression}&$orderby=id")
    return [city.things.index(i) for i in found if i in city.things]


def observations(api, city, expression):
    """Which of stream 0's Observations match, by their hour."""
    found = api.ids(f"/Datastreams({city.streams[0]})/Observations?$filter={expression}&$orderby=id")
    return [city.observations.index(i) for i in found]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("result eq 3", [3]),
        ("3 eq result", [3]),
        ("result ne 3 and result lt 5", [0, 1, 2, 4]),
        ("result gt 9", [10, 11]),
        ("9 lt result", [10, 11]),
        ("result ge 10.5", [11]),
        ("result le -1", []),
        ("result eq 3.0", [3]),
        ("result lt 2 or result gt 10", [0, 1, 11]),
        ("result lt 5 and result gt 2 or result eq 9", [3, 4, 9]),
        ("result eq 9 or result lt 5 and result gt 2", [3, 4, 9]),
        ("(result eq 9 or result lt 5) and result gt 2", [3, 4, 9]),
        ("not (result lt 9)", [9, 10, 11]),
        ("not (result lt 5) and result lt 7", [5, 6]),
        ("not result lt 5 and not result ge 7", [5, 6]),
        ("not result add 1 lt 10 and not result in (10, 11)", [9]),
        ("not (result lt 9) eq true", [9, 10, 11]),
        ("result add 1 eq 5", [4]),
        ("result sub 1 mul 2 eq 3", [5]),
        ("(result sub 1) mul 2 eq 4", [3]),
        ("result div 2 eq 1.5", [3]),
        ("result mod 5 eq 4", [4, 9]),
        ("result div 0 eq 1", []),
        ("result in (1, 2, 99)", [1, 2]),
        ("parameters/hour eq result and result ge 10", [10, 11]),
        ("result eq '3'", [3]),
        ("result gt '8'", [9]),  # as text
        ("result eq true", []),
        ("result eq 'x'", []),
        ("id eq 0", []),
        ("resultTime eq null and result lt 4", [0, 2]),
        ("resultTime ne null and result lt 4", [1, 3]),
        ("parameters/none eq null and result lt 2", [0, 1]),
        ("validTime eq null and result lt 2", [0, 1]),
        ("round(result div 4) eq 1", [2, 3, 4, 5]),
        ("floor(result div 4) eq 1", [4, 5, 6, 7]),
        ("ceiling(result div 4) eq 1", [1, 2, 3, 4]),
    ],
)
def test_numbers(api, city, expression, expected):
    """req/request-data/built-in-filter-operations."""
    assert observations(api, city, expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("phenomenonTime eq 2024-01-01T03:00:00Z", [3]),
        ("phenomenonTime gt 2024-01-01T09:00Z", [10, 11]),
        ("phenomenonTime ge 2024-01-01T11:00:00+01:00", [10, 11]),
        ("2024-01-01T02:00:00Z gt phenomenonTime", [0, 1]),
        ("phenomenonTime lt '2024-01-01T02:00:00Z'", [0, 1]),
        ("phenomenonTime ge 2024-01-01T02:00:00.000Z and phenomenonTime le 2024-01-01T03:00:00Z", [2, 3]),
        ("phenomenonTime lt resultTime and result lt 4", [1, 3]),
        ("resultTime gt 2024-01-01T09:00:00Z", [9, 11]),
        ("phenomenonTime eq 5", []),
        ("phenomenonTime eq 'yesterday'", []),
        ("phenomenonTime gt 2024-01-01", list(range(1, 12))),
        ("hour(phenomenonTime) eq 5", [5]),
        (
            "year(phenomenonTime) eq 2024 and day(phenomenonTime) eq 1 and month(phenomenonTime) lt 2 and result eq 0",
            [0],
        ),
        ("minute(resultTime) eq 30 and result lt 2", [1]),
        ("second(phenomenonTime) eq 0 and fractionalseconds(phenomenonTime) eq 0 and result eq 1", [1]),
        ("date(phenomenonTime) eq 2024-01-01 and result eq 1", [1]),
        ("time(phenomenonTime) ge 10:00:00", [10, 11]),
        ("totaloffsetminutes(phenomenonTime) eq 0 and result eq 1", [1]),
        ("phenomenonTime lt now() and result eq 1", [1]),
        ("phenomenonTime gt mindatetime() and phenomenonTime lt maxdatetime() and result eq 1", [1]),
        ("phenomenonTime sub duration'-PT1H' eq 2024-01-01T04:00:00Z", [3]),
        ("phenomenonTime add duration'PT1H' eq 2024-01-01T04:00:00Z", [3]),
        ("phenomenonTime gt 2024-01-01T12:00:00Z sub duration'PT90M'", [11]),
        ("resultTime sub phenomenonTime eq duration'PT30M' and result lt 3", [1]),
        ("phenomenonTime during 2024-01-01T02:00:00Z/2024-01-01T04:00:00Z", [2, 3]),
        ("during(phenomenonTime, 2024-01-01T02:00:00Z/PT2H)", [2, 3]),
        ("before(phenomenonTime, 2024-01-01T01:00:00Z)", [0]),
        ("Datastream/phenomenonTime eq 2024-01-01T00:00:00Z/2024-01-01T11:00:00Z and result eq 1", [1]),
    ],
)
def test_times(api, city, expression, expected):
    """req/request-data/built-in-filter-operations."""
    assert observations(api, city, expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("name eq 'Thing 1'", [1]),
        ("name gt 'Thing 1'", [2, 3]),
        ("name ne 'Thing 1'", [0, 2, 3]),
        ("'Thing 1' eq name", [1]),
        ("name eq 5", []),
        ("name eq null", []),
        ("properties eq null", [3]),
        ("properties ne null", [0, 1, 2]),
        ("properties/n eq null", [3]),
        ("properties/n ne null", [0, 1, 2]),
        ("properties/n eq 1", [1]),
        ("properties/n gt 0.5", [1, 2]),
        ("properties/n eq '1'", [1]),
        ("properties/half eq 0.5", [1]),
        ("properties/n eq properties/array[0]", [0, 1, 2]),
        ("properties/n lt properties/array[1]", [0, 1, 2]),
        ("properties/string eq 'bcdefgh'", [1]),
        ("properties/string ne 'bcdefgh'", [0, 2]),  # nulls are left out
        ("not (properties/string eq 'bcdefgh')", [0, 2]),
        ("properties/string eq 5", []),
        ("properties/string gt 5", []),
        ("properties/boolean", [0, 2]),
        ("not properties/boolean", [1]),
        ("properties/boolean eq true", [0, 2]),
        ("properties/boolean eq false or name eq 'Thing 3'", [1, 3]),
        ("properties/n eq true", []),
        ("properties/n", []),
        ("name", []),
        ("properties/mixed eq '1'", [1]),
        ("properties/mixed eq 0", [0]),
        ("properties/array[1] gt 1", [1, 2]),
        ("properties/objects[0]/n eq 2", [2]),
        ("properties/objects[0]/name eq 'in 2'", [2]),
        ("properties/n in (0, 2)", [0, 2]),
        ("name in ('Thing 0', 'x')", [0]),
        ("1 in properties/array", [0, 1]),
        ("'s2' in properties/strings", [1, 2]),
        ("1 in properties/string", []),
        ("properties/since gt 2020-06-01T00:00:00Z", [1, 2]),
        ("year(properties/since) eq 2021", [1]),
        ("true", [0, 1, 2, 3]),
        ("false or name eq 'Thing 1'", [1]),
        ("null eq null", [0, 1, 2, 3]),
        ("1 eq 1.0", [0, 1, 2, 3]),
        ("startswith(name, 'Thing') and endswith(name, '2')", [2]),
        ("substringof('g 3', name)", [3]),
        ("contains(name, 'g 3')", [3]),
        ("length(properties/string) eq 7", [1]),
        ("indexof(name, 'hing') eq 2 and properties/n eq 1", [1]),
        ("substring(name, 6) eq '1'", [1]),
        ("substring(name, 0, 5) eq 'Thing' and properties/n eq 1", [1]),
        ("substring(name, -3, -3) eq '' and properties/n eq 1", [1]),
        ("tolower(name) eq 'thing 1'", [1]),
        ("toupper(name) eq 'THING 1'", [1]),
        ("trim(concat('  ', name)) eq 'Thing 1'", [1]),
        ("startswith(properties/n, '1')", [1]),
        ("name eq 'O''Reilly'", []),
    ],
)
def test_texts_and_json(api, city, expression, expected):
    """req/request-data/filter; a mismatch of types is never an error."""
    assert things(api, city, expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("Datastreams/name eq 'Stream 1'", [0]),
        ("Datastreams/id eq null", [2, 3]),
        ("Datastreams/id ne null", [0, 1]),
        ("Locations/id eq null", [3]),
        ("not (Datastreams/name eq 'Stream 1')", [1, 2, 3]),
        ("Locations/properties/n eq properties/n", [0, 1, 2]),
        ("HistoricalLocations/Locations/properties/n eq properties/n and properties/n gt 0", [1, 2]),
        ("startswith(Locations/name, 'Place 1')", [1]),
        ("Datastreams/ObservedProperty/name eq 'Gas 0'", [0, 1]),
        (
            "Datastreams/ObservedProperty/name eq 'Gas 0' and Datastreams/ObservedProperty/name eq 'Gas 1'",
            [0],
        ),
        ("Datastreams/Observations/result eq 205", [1]),
        ("Datastreams/Observations/result eq 5 or Datastreams/Observations/result eq 205", [0, 1]),
        ("Datastreams/any(d: d/name eq 'Stream 1')", [0]),
        ("Datastreams/any(d: d/name eq 'Stream 1' and d/ObservedProperty/name eq 'Gas 0')", []),
        ("Datastreams/any()", [0, 1]),
        ("not Datastreams/any()", [2, 3]),
        ("Datastreams/all(d: d/ObservedProperty/name eq 'Gas 0')", [1, 2, 3]),
        ("Datastreams/any(d: d/Observations/any(o: o/result eq 205 and d/name eq 'Stream 2'))", [1]),
        ("Locations/any(l: l/properties/n eq properties/n and l/properties/n gt 0)", [1, 2]),
        ("Datastreams/Observations/any(o: o/result eq 105)", [0]),
        ("HistoricalLocations/any(h: h/Locations/any(l: startswith(l/name, 'Place 1')))", [1]),
        ("Datastreams/any(d: d/Observations/result eq 105)", [0]),
    ],
)
def test_relations(api, city, expression, expected):
    """req/request-data/filter: to one, to many (any of them), several hops, lambdas; no entity twice."""
    assert things(api, city, expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("Datastream/id eq {0} and result eq 1", [1]),
        ("Datastream/name eq 'Stream 0' and result eq 1", [1]),
        ("Datastream/Thing/name eq 'Thing 0' and result eq 1", [1]),
        ("Datastream/Thing/properties/n eq 0 and result eq 1", [1]),
        ("Datastream/Thing/Locations/name eq 'Place 0' and result eq 1", [1]),
        ("FeatureOfInterest/name eq 'Place 0' and result eq 1", [1]),
        ("FeatureOfInterest/id ne null and result eq 1", [1]),
        ("FeatureOfInterest eq null", []),
        ("Datastream/unitOfMeasurement/symbol eq 'u0' and result eq 1", [1]),
        ("result eq 1 and Datastream/id gt 0", [1]),
    ],
)
def test_relations_of_observations(api, city, expression, expected):
    """req/request-data/filter."""
    assert observations(api, city, expression.replace("{0}", str(city.streams[0]))) == expected


@pytest.mark.parametrize(
    ("expression", "position"),
    [
        ("name eq", 8),
        ("name eq 'x", 9),
        ("name eq 'x' and", 16),
        ("name == 'x'", 6),
        ("(name eq 'x'", 13),
        ("name eq 'x')", 12),
        ("colour eq 1", 1),
        ("Datastreams/colour eq 1", 1),
        ("nothing(name)", 1),
        ("length(name, name) eq 1", 1),
        ("length() eq 1", 1),
        ("name eq 2024-02-30T00:00:00Z", 9),
        ("name/first eq 1", 1),
        ("Datastreams eq 1", 1),
        ("name any(d: d)", 6),
        ("name/any(d: d/x)", 1),
        ("during(properties/since, 2024-01-01T00:00:00Z)", 1),
        ("name eq 'x' name", 13),
        ("5 5", 3),
        ("", 1),
        ("name eq ?", 9),
        ("properties/array[x] eq 1", 18),
        ("properties/array[1 eq 1", 20),
        ("substringof('a')", 1),
    ],
)
def test_faults_say_where(api, expression, position):
    """req/request-data/query-status-code: 400, with the position."""
    message = api.refused(f"/Things?$filter={expression}", 400)
    assert message.startswith("$filter: ")
    at_end = position > len(expression)
    assert ("at its end" if at_end else f"character {position},") in message, message


@pytest.mark.parametrize("expression", ["name has 'x'", "cast(name, 'x')", "isof(name, 'x')"])
def test_what_odata_knows_and_we_do_not(api, expression):
    """req/request-data/query-status-code: 501."""
    api.refused(f"/Things?$filter={expression}", 501)


@pytest.mark.parametrize(
    "expression",
    [
        "(" * 500 + "true" + ")" * 500,
        "not " * 500 + "true",
        "true" + " and true" * 3000,
        "name eq '" + "x" * 40_000 + "'",
        "1 eq " + "9" * 1000,
        "1 eq 1e999",
        "substringof(" * 100 + "name",
    ],
)
def test_what_is_too_much_is_refused(api, expression):
    api.refused(f"/Things?$filter={expression}", 400)


@pytest.mark.parametrize(
    "expression", ["result mul 1e308 mul 10 gt 1", "phenomenonTime add duration'P3000000D' gt now()"]
)
def test_what_overflows_is_no_error_of_the_service(api, expression):
    assert api.status(f"/Observations?$filter={expression}") in {200, 400}
