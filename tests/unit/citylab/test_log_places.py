import struct
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citylab.adapters.log_places import (
    LARGEST_VALUE,
    by_partition,
    check,
    fingerprint,
    partition_of,
    position_after,
)
from citylab.errors import PositionLost
from citylab.model import Event, NewEvent, Position, Topic


# The hashes of Kafka's own test (UtilsTest.testMurmur2).
@pytest.mark.parametrize(
    ("key", "murmur2"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_a_key_goes_where_kafka_puts_it(key, murmur2):
    for partitions in (1, 3, 4, 1000):
        assert partition_of(key, partitions) == (murmur2 & 0x7FFFFFFF) % partitions


def test_a_fingerprint_is_what_the_port_says():
    head = struct.pack(">qqI", 7, -1, len("Zürich".encode()))
    assert fingerprint(7, -1, "Zürich", b"value") == sha256(head + "Zürich".encode() + b"value").digest()[:8]


def test_key_and_value_do_not_run_into_each_other():
    assert fingerprint(1, 2, "ab", b"c") != fingerprint(1, 2, "a", b"bc")


def test_the_position_after_an_event_is_the_next_offset():
    event = Event(3, 41, "gw", b"value", {}, 5)
    assert position_after(event) == Position(42, fingerprint(41, 5, "gw", b"value"))


def test_a_position_with_another_fingerprint_is_lost():
    check(Topic.PACKS, 2, Position(5, b"same"), Position(5, b"same"))
    with pytest.raises(
        PositionLost, match=r"citylab\.packs/2: the event before offset 5 is not the one that was read"
    ):
        check(Topic.PACKS, 2, Position(5, b"this"), Position(5, b"that"))


@given(st.lists(st.text(max_size=8)), st.integers(1, 16))
def test_events_keep_their_order_within_their_partition(keys, partitions):
    events = [NewEvent(key, b"%d" % number, {}, number) for number, key in enumerate(keys)]
    lanes = by_partition(events, partitions)
    assert sorted((e for lane in lanes.values() for e in lane), key=lambda e: e.time) == events
    for partition, lane in lanes.items():
        assert {partition_of(e.key, partitions) for e in lane} == {partition}
        assert [e.time for e in lane] == sorted(e.time for e in lane)


def test_a_value_that_is_too_large_is_refused():
    by_partition([NewEvent("gw", bytes(LARGEST_VALUE), {}, 0)], 1)
    with pytest.raises(ValueError, match="an event of gw has 4194305 bytes"):
        by_partition([NewEvent("gw", bytes(LARGEST_VALUE + 1), {}, 0)], 1)
