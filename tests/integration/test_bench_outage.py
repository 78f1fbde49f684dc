"""`citylab bench outage`: a gateway comes back with a full outbox, on both sets of engines; everything comes."""

import msgspec
import pytest
from city import KINDS, clean_environment, run
from engines import url_of

HOURS, RATE = 0.1, 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_backlog_is_caught_up_with_while_live_data_flows(kind):
    names = ("BROKER", "LOG", "STORE") if kind == "real" else ()
    urls = {f"CITYLAB_{name}_URL": url_of(name) for name in names}

    done = run(
        "bench",
        "outage",
        "--hours",
        HOURS,
        "--rate",
        RATE,
        "--json",
        env=clean_environment(**urls),
        within=120,
    )

    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout)
    assert found["observations"] == HOURS * 3_600 * RATE
    assert found["observations"] / found["seconds"] > 10 * RATE, "it catches up"
    for delays in ("alone", "beside", "live"):
        assert found[delays]["observations"] > RATE
        assert 0 < found[delays]["p50"] <= found[delays]["p99"] <= found[delays]["most"] < 30_000
    assert {"gateway", "ingest", "processing", "broker"} <= found["memory"].keys()
    assert all(0 < most < 500 for most in found["memory"].values()), found["memory"]


def test_an_outage_that_no_outbox_holds_is_refused():
    done = run("bench", "outage", "--hours", 1_000, env=clean_environment())
    assert done.returncode == 2
