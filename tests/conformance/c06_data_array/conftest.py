"""Two Datastreams with three Observations each, at the same times."""

from types import SimpleNamespace

import pytest

RESULTS = ["1", "2.50", '"text"']


@pytest.fixture(scope="module")
def rows(api, documents) -> SimpleNamespace:
    streams = [api.create("/Datastreams", documents.whole_datastream(f"Array {n}")) for n in range(2)]
    ids = []
    for hour, result in enumerate(RESULTS):
        for stream in streams:
            body = f'{{"phenomenonTime":"2024-01-01T0{hour}:00:00Z","result":{result},"parameters":{{"hour":{hour}}}}}'
            ids.append(api.create(f"/Datastreams({stream})/Observations", body))
    return SimpleNamespace(streams=streams, ids=ids)
