"""What was published to create Observations: together where they are plain, and none harmed by another."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from citylab.drafts import Draft
from citylab.errors import Rejected
from citylab.model import Batch, Event, Position, Topic
from citylab.ports import START
from citylab.writes import Span, Write
from processing.creates import create

PLAIN = b'{"result":%d,"Datastream":{"@iot.id":3}}'
DEEP = b'{"result":1,"Datastream":{"@iot.id":3},"FeatureOfInterest":{"name":"n","description":"d","encodingType":"e","feature":{}}}'


class Store:
    """A store that tells what it was asked; one transaction at a time (`ports.Store`, `Transaction`, `EntityWrites`)."""

    def __init__(self, *, refuses_together: bool = False) -> None:
        self.refuses_together = refuses_together
        self.story: list[Any] = []
        self.saved: list[Write] = []

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["Store"]:
        self.story.append("begin")
        yield self
        self.story.append("commit")

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        yield

    async def lock_catalogue(self) -> None:
        self.story.append("lock")

    async def save(self, write: Write) -> None:
        self.story.append("rejections" if write.rejections else "place")
        self.saved.append(write)

    async def create_observations(
        self, drafts: Sequence[Draft], *, now: int
    ) -> tuple[np.ndarray, dict[int, str]]:
        assert now == 1_000
        assert all(draft.values["phenomenonTime"][0] >= now for draft in drafts), (
            "each has its own time of receipt"
        )
        if self.refuses_together:
            raise Rejected("malformed", "a value that nobody foresaw")
        results = [draft.values["result"].json for draft in drafts]
        self.story.append(results)
        return np.zeros(0, np.int64), {i: "is 13" for i, result in enumerate(results) if result == "13"}

    async def create(self, _: "Store", draft: Draft, *, now: int) -> int:
        result = draft.values["result"].json
        if result == "13":
            raise Rejected("malformed", "is 13")
        self.story.append((result, now))
        return 1


def batch_of(*payloads: bytes) -> Batch:
    headers = {"gateway": "v1.1/Observations", "topic": "v1.1/Observations"}
    events = [Event(0, i, "key", payload, headers, 1_000 + i) for i, payload in enumerate(payloads)]
    return Batch(Topic.CREATES, 0, START, events, Position(len(events), b"after"))


def refusals(store: Store) -> list[tuple[int, str, bytes | None]]:
    write = store.saved[-1]
    return [(write.receipts[r.receipt].offset, r.detail, r.payload) for r in write.rejections]


async def test_plain_ones_are_stored_together_behind_the_fence():
    store = Store()
    batch = batch_of(PLAIN % 1, PLAIN % 2)
    await create(store, store, batch)
    assert store.story == ["begin", "place", ["1", "2"], "commit"]
    assert store.saved[0].spans == [Span(Topic.CREATES, 0, START, batch.after)]


async def test_others_are_created_one_by_one_in_order_under_the_catalogue_lock():
    store = Store()
    await create(store, store, batch_of(PLAIN % 1, DEEP, PLAIN % 3))
    assert store.story == ["begin", "lock", "place", ["1"], ("1", 1_001), ["3"], "commit"]


async def test_what_is_wrong_is_a_rejection_with_its_bytes_and_place():
    store = Store()
    await create(store, store, batch_of(b"no JSON", PLAIN % 13, PLAIN % 2))
    assert store.story == ["begin", "place", ["13", "2"], "rejections", "commit"]
    (first, why, payload), second = refusals(store)
    assert (first, payload) == (0, b"no JSON")
    assert "no JSON" in why
    assert second == (1, "is 13", PLAIN % 13)


async def test_a_value_that_nobody_foresaw_costs_one_event():
    store = Store(refuses_together=True)
    await create(store, store, batch_of(PLAIN % 1, PLAIN % 13, PLAIN % 2))
    assert store.story == [
        "begin",
        "place",
        "begin",
        "lock",
        "place",
        ("1", 1_000),
        ("2", 1_002),
        "rejections",
        "commit",
    ]
    assert refusals(store) == [(1, "is 13", PLAIN % 13)]
