"""OGC's executable test suite for SensorThings 1.0 against our `/v1.1`, on a fresh embedded store: `make conformance`.

The suite comes from Maven Central. It needs one entity of every kind before it starts, and deletes everything. All its
methods must be executed and passed; ends with 1 otherwise. Its reports stay in the folder that is printed.
"""

import asyncio
import contextlib
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import uvicorn

from api.app import create_app
from citylab.adapters import entity_writes
from citylab.adapters.embedded_postgres import EmbeddedPostgres
from citylab.adapters.migrations import migrate
from citylab.adapters.store import PostgresStore

COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
SUITE = "org.opengis.cite:ets-sta10:1.5:jar:aio"
JSON = "org.json:json:20090211"  # goes before the suite, whose own reads no number where it expects a string
METHODS = 22  # of its three conformance levels
SECONDS = 900
ENTITIES = {
    "name": "Thing",
    "description": "d",
    "Locations": [
        {"name": "Location", "description": "d", "encodingType": "application/vnd.geo+json",
         "location": {"type": "Point", "coordinates": [2.17, 41.38]}}
    ],
    "Datastreams": [
        {"name": "Datastream", "description": "d",
         "observationType": "http://www.opengis.net/def/observationType/OGC-OM/2.0/OM_Measurement",
         "unitOfMeasurement": {"name": "n", "symbol": "s", "definition": "d"},
         "Sensor": {"name": "Sensor", "description": "d", "encodingType": "application/pdf", "metadata": "m"},
         "ObservedProperty": {"name": "o", "definition": "http://example.org/o", "description": "d"},
         "Observations": [
            {"phenomenonTime": "2024-01-01T00:00:00Z", "resultTime": "2024-01-01T00:00:00Z", "result": 1}
         ]}
    ],
}  # fmt: skip
PROPERTIES = """<?xml version="1.0" encoding="UTF-8"?>
<properties version="1.0"><entry key="iut">{url}</entry><entry key="ics">3</entry></properties>
"""


def main() -> int:
    """Fetch the suite, run it, and say what became of each method."""
    folder = Path(tempfile.mkdtemp(prefix="citylab-ets-"))
    folder.chmod(0o711)  # the account of the embedded PostgreSQL must reach it
    try:
        jars = [fetch(artifact, folder / "jars" / str(i)) for i, artifact in enumerate((JSON, SUITE))]
        asyncio.run(run_suite(folder, jars))
        return report(folder)
    finally:
        for made in ("store", "jars"):
            shutil.rmtree(folder / made, ignore_errors=True)


def fetch(artifact: str, folder: Path) -> Path:
    """Copy an artifact out of Maven's repository."""
    for program in ("mvn", "java"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing: install it, for example apt-get install maven")
    options = [f"-Dartifact={artifact}", f"-DoutputDirectory={folder}"]
    subprocess.run(["mvn", "-B", "-q", COPY, *options], check=True, timeout=600)
    (jar,) = folder.iterdir()
    return jar


async def run_suite(folder: Path, jars: list[Path]) -> None:
    """Run the suite against a service of its own."""
    async with served(folder / "store") as url:
        async with httpx.AsyncClient() as client:
            (await client.post(f"{url}/Things", json=ENTITIES)).raise_for_status()
        properties = folder / "properties.xml"
        properties.write_text(PROPERTIES.format(url=url))
        # It writes its reports below the user's home.
        command = ["java", f"-Duser.home={folder}", "-cp", ":".join(map(str, jars))]
        suite = await asyncio.create_subprocess_exec(
            *command, "org.opengis.cite.sta10.TestNGController", str(properties), stdout=subprocess.DEVNULL
        )
        try:
            await asyncio.wait_for(suite.wait(), SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                suite.kill()


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[str]:
    """Serve a fresh store on a free port of loopback; the URL of the service's root."""
    async with EmbeddedPostgres(folder) as postgres:
        await migrate(postgres.url)
        async with PostgresStore(postgres.url, name="conformance") as store:
            app = create_app(store, entity_writes, tasking=False)  # the suite refuses a root that lists more
            server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
            serving = asyncio.create_task(server.serve())
            while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn has no event for it
                await asyncio.sleep(0.01)
            try:
                port = server.servers[0].sockets[0].getsockname()[1]
                yield f"http://127.0.0.1:{port}/v1.1"
            finally:
                server.should_exit = True
                await serving


def report(folder: Path) -> int:
    """Print what became of each method; 0 when all were executed and passed."""
    results = next(folder.rglob("testng-results.xml"), None)
    if results is None:
        print(f"the suite made no report in {folder}")
        return 1
    passed = failed = 0
    for level in ET.parse(results).getroot().iter("test"):
        for method in level.iter("test-method"):
            if method.get("is-config") == "true":
                continue
            well = method.get("status") == "PASS"
            passed, failed = passed + well, failed + (not well)
            print(f"{method.get('status')}  {level.get('name')}: {method.get('name')}")
            message = method.findtext("exception/message")
            if message:
                print(f"      {message.strip()}")
    print(f"reports: {folder}\n{passed} passed, {failed} failed")
    return 0 if failed == 0 and passed == METHODS else 1


if __name__ == "__main__":
    sys.exit(main())
