import pytest

from api.sensorthings.options import read_query
from api.sensorthings.windows import Extent, first_datastream, windowed

HOUR = 3_600_000_000
EXTENT = Extent(0, 1_000 * HOUR, 1_000_000, 1_000_000)  # a row every 3.6 s


def window(text, page=100):
    return windowed(read_query(text), page)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "$orderby=result",
        "$orderby=phenomenonTime add duration'PT1H'",
        "$orderby=Datastream/id,phenomenonTime",
        "$orderby=phenomenonTime&$filter=Datastream/id eq 5",
        "$orderby=phenomenonTime&$filter=result eq 1 or Datastream/name eq 'x'",
        "$orderby=phenomenonTime&$filter=result eq 1&$count=true",
    ],
)
def test_where_there_is_no_window(text):
    assert window(text) is None


def test_windows_widen_from_the_end_where_the_page_begins():
    tries = window("$orderby=phenomenonTime desc").windows(EXTENT)
    assert [high for _, high in tries] == ["infinity"] * len(tries)
    lows = [low for low, _ in tries]
    assert lows[-1] == "-infinity"
    assert lows[:-1] == sorted(lows[:-1], reverse=True)
    tries = window("$orderby=phenomenonTime").windows(EXTENT)
    assert [low for low, _ in tries] == ["-infinity"] * len(tries)
    assert tries[0][1] == "1970-01-01T00:12:07.2Z"  # twice what 101 rows should take
    assert tries[-1] == ("-infinity", "infinity")


def test_the_request_bounds_the_windows():
    text = "$filter=phenomenonTime ge 1970-01-02T00:00:00Z and 1970-01-03T00:00:00Z gt phenomenonTime and result gt 1"
    found = window(f"$orderby=phenomenonTime&{text}")
    assert (found.low, found.high) == (24 * HOUR, 48 * HOUR)
    tries = found.windows(EXTENT)
    assert tries[-1] == ("1970-01-02T00:00:00Z", "1970-01-03T00:00:00Z")
    assert all(low == "1970-01-02T00:00:00Z" for low, _ in tries)
    loose = window(f"$orderby=phenomenonTime&{text.replace(' and result', ' or result')}")
    assert (loose.low, loose.high) == (None, None)


def test_a_token_bounds_them_too():
    token = "WyIxOTcwLTAxLTAyIDAwOjAwOjAwLjUrMDAiLCAiNSIsICIwIl0"  # ["1970-01-02 00:00:00.5+00", "5", "0"]
    assert window(f"$orderby=phenomenonTime desc&$skiptoken={token}").high == 24 * HOUR + 500_000
    assert window(f"$orderby=phenomenonTime&$skiptoken={token}&$skip=7").low == 24 * HOUR + 500_000
    assert window(f"$orderby=phenomenonTime&$skiptoken={token}&$skip=7").skipped == 0
    assert window("$orderby=phenomenonTime&$skiptoken=x") is None


def test_ids():
    tries = window("$orderby=id&$filter=id gt 500").windows(EXTENT)
    assert tries[0][0] == "500"
    assert tries[-1] == ("500", str(2**63 - 1))
    assert window("$orderby=@iot.id desc", 10).windows(EXTENT)[0] == (str(1_000_000 - 22), str(2**63 - 1))


def test_an_empty_store_has_one_window():
    assert window("$orderby=phenomenonTime").windows(Extent(None, None, 0, 1)) == [("-infinity", "infinity")]


def test_a_filter_that_only_bounds_the_window_makes_it_no_wider():
    bounds = "$orderby=phenomenonTime&$filter=phenomenonTime ge 1970-01-02T00:00:00Z and phenomenonTime lt 1970-01-03T00:00:00Z"
    assert window(bounds).windows(EXTENT)[0] == ("1970-01-02T00:00:00Z", "1970-01-02T00:12:07.2Z")
    assert window(f"{bounds} and result gt 1").windows(EXTENT)[0][1] > "1970-01-02T01"


AT = "$filter=phenomenonTime ge 1970-01-02T00:00:00Z"


def test_a_page_may_lie_at_the_lower_bound_alone():
    assert window(f"$orderby=phenomenonTime&{AT}").after == 0
    assert window(f"$orderby=phenomenonTime&{AT}").instant == "1970-01-02T00:00:00Z"
    token = "WyIxOTcwLTAxLTAyIDAwOjAwOjAwLjUrMDAiLCAiNSIsICIwIl0"
    further = window(f"$orderby=phenomenonTime&{AT}&$skiptoken={token}")
    assert (further.after, further.instant) == (5, "1970-01-02T00:00:00.5Z")


@pytest.mark.parametrize(
    "text",
    [
        "$orderby=phenomenonTime",
        f"$orderby=phenomenonTime desc&{AT}",
        f"$orderby=phenomenonTime,result&{AT}",
        f"$orderby=phenomenonTime&$skip=5&{AT}",
        f"$orderby=phenomenonTime&{AT} and result gt 1",
        "$orderby=id&$filter=id ge 5",
        "$orderby=phenomenonTime&$skiptoken=WyIxOTcwLTAxLTAyIDAwOjAwOjAwLjUrMDAiLCAieCIsICIwIl0",
    ],
)
def test_elsewhere_it_is_not_looked_for_there(text):
    assert window(text).after is None


RANGE = "$filter=phenomenonTime ge 1970-01-02T00:00:00Z and phenomenonTime lt 1970-01-03T00:00:00Z"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (RANGE, 0),
        (f"{RANGE}&$skiptoken=WyI1IiwgIjE5NzAtMDEtMDIgMDA6MDA6MDArMDAiLCAiMCJd", 5),
        (f"{RANGE}&$skiptoken=x", None),
        (f"{RANGE}&$skip=5", None),
        (f"{RANGE}&$orderby=result", None),
        (f"{RANGE} and result gt 1", None),
        ("$filter=result gt 1", None),
        ("", None),
    ],
)
def test_where_the_first_datastreams_may_fill_the_page(text, first):
    assert first_datastream(read_query(text)) == first
