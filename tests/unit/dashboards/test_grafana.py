import pytest

from citylab.errors import ConfigurationError
from dashboards.grafana import Change, PanelResult, Pushed, PushReport, StoreAddress


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:5433/citylab", StoreAddress("127.0.0.1", 5433, "citylab")),
        ("timescale/citylab", StoreAddress("timescale", 5432, "citylab")),
        ("postgresql://me:secret@db.example:6000/city%20lab", StoreAddress("db.example", 6000, "city lab")),
        ("postgres://db/citylab?sslmode=require", StoreAddress("db", 5432, "citylab", "require")),
        ("[::1]:5432/citylab", StoreAddress("::1", 5432, "citylab")),
    ],
)
def test_an_address_of_the_store_is_read(text: str, address: StoreAddress) -> None:
    assert StoreAddress.parse(text) == address


def test_an_ipv6_address_keeps_its_brackets() -> None:
    assert StoreAddress.parse("[::1]:5432/citylab").netloc == "[::1]:5432"
    assert StoreAddress.parse("127.0.0.1/citylab").netloc == "127.0.0.1:5432"


@pytest.mark.parametrize(
    "text", ["", "localhost", "localhost:5432", "localhost:port/x", "h:1/a/b", "/citylab"]
)
def test_what_is_no_address_is_refused_and_the_setting_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="CITYLAB_GRAFANA_STORE_URL"):
        StoreAddress.parse(text)


def test_of_several_hosts_grafana_is_to_be_told_one() -> None:
    with pytest.raises(ConfigurationError, match="CITYLAB_GRAFANA_STORE_URL") as raised:
        StoreAddress.parse("postgresql://citylab:s3cret@a:1,b:2/citylab")
    assert "s3cret" not in str(raised.value)


def test_a_wrong_address_does_not_print_its_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        StoreAddress.parse("postgresql://me:secret@host:1/")
    assert "secret" not in str(caught.value)


def test_the_report_names_the_panels_that_fail() -> None:
    report = PushReport(
        grafana="http://g:3000",
        version="12.3.0",
        folder=Change.CREATED,
        data_source=Change.UNCHANGED,
        dashboards=[Pushed("City overview", "http://g:3000/d/x", Change.UPDATED)],
        panels=[PanelResult("City overview", "a", 3), PanelResult("City overview", "b", 0, "no such view")],
    )

    assert report.lines() == [
        "Grafana 12.3.0 at http://g:3000",
        "  folder Citylab: created",
        "  data source Citylab store: unchanged",
        "  dashboard City overview: updated, http://g:3000/d/x",
        "  1 of 2 panels work",
        "  City overview / b: no such view",
    ]
    assert [panel.panel for panel in report.failed] == ["b"]
    assert report.json()["panels"][1] == {
        "dashboard": "City overview", "panel": "b", "rows": 0, "error": "no such view",
    }  # fmt: skip
