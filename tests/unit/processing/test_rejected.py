"""Packs that the bridge refused are kept among the rejections, whatever their headers say."""

import pytest

from citylab.model import Batch, Event, Position, Reason, Topic
from citylab.ports import START
from citylab.writes import Receipt, Span
from processing.rejected import refused


def batch_of(*headers: dict) -> Batch:
    events = [Event(2, i, "key", b"bytes %d" % i, header, 1_000 + i) for i, header in enumerate(headers)]
    return Batch(Topic.REFUSED, 2, START, events, Position(len(events), b"after"))


def test_a_refused_pack_becomes_a_rejection_with_its_bytes_and_numbers():
    headers = {"gateway": "gw", "epoch": "7", "seq": "8", "reason": "malformed", "detail": "no SenML"}

    write = refused(batch_of(headers, {"gateway": "gw", "reason": "over-quota", "detail": "too much"}))

    assert [(r.receipt, r.record, r.reason, r.detail, r.payload) for r in write.rejections] == [
        (0, -1, Reason.MALFORMED, "no SenML", b"bytes 0"),
        (1, -1, Reason.OVER_QUOTA, "too much", b"bytes 1"),
    ]
    assert write.receipts == [
        Receipt("gw", 7, 8, Topic.REFUSED, 2, 0, 1_000, 1),
        Receipt("gw", 0, 0, Topic.REFUSED, 2, 1, 1_001, 1),
    ]
    assert write.spans == [Span(Topic.REFUSED, 2, START, Position(2, b"after"))]
    assert len(write.rows) == 0


@pytest.mark.parametrize("headers", [{}, {"reason": "because"}])
def test_without_headers_that_we_know_it_is_malformed_and_its_keys(headers):
    write = refused(batch_of(headers))

    assert (write.receipts[0].gateway, write.rejections[0].reason) == ("key", Reason.MALFORMED)
