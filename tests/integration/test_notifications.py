"""Who waits for updates is told of what came through the API, after it was committed."""

import asyncio
from contextlib import aclosing

PLACE = {"type": "Point", "coordinates": [2.17, 41.38]}
STREAM = {
    "name": "s", "description": "d", "observationType": "t",
    "unitOfMeasurement": {"name": "n", "symbol": "s", "definition": "d"},
    "Sensor": {"name": "s", "description": "d", "encodingType": "text/plain", "metadata": "m"},
    "ObservedProperty": {"name": "o", "definition": "http://example.org/o", "description": "d"},
    "Thing": {
        "name": "t", "description": "d",
        "Locations": [{"name": "l", "description": "d", "encodingType": "application/geo+json", "location": PLACE}],
    },
}  # fmt: skip


async def test_an_observation_of_the_api_is_told_of(store):
    async with store.transaction() as transaction:
        stream = await transaction.create("Datastreams", STREAM)
    async with asyncio.timeout(30), aclosing(store.notifications("citylab_updates", poll=60)) as told:
        await anext(told)  # at once
        for _ in range(3):
            async with store.transaction() as transaction:
                await transaction.create("Observations", {"result": 1, "Datastream": {"@iot.id": stream}})
            await anext(told)
            async with store.transaction(read_only=True) as transaction:
                ((waiting,),) = await transaction.fetch("SELECT count(*) FROM pending_updates")
            assert waiting
            async with store.transaction(read_only=True) as transaction:
                await transaction.execute("DELETE FROM pending_updates")
