"""Counts of delays add up, and their quantiles are within a bucket's width of the true ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citylab.delays import BUCKETS, bucket, quantile

micros = st.integers(-(10**9), 2**31 * 1_000 - 1)


def counts(delays: list[int]) -> list[int]:
    return np.bincount(bucket(np.array(delays, np.int64)), minlength=BUCKETS).tolist()


@given(st.lists(micros, min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_within_its_buckets_width(delays, share):
    true = sorted(delays)[max(int(np.ceil(share * len(delays))), 1) - 1] / 1_000

    found = quantile(counts(delays), share)

    assert found is not None
    if true < 1:
        assert 0 <= found <= 1
    else:
        assert true / 1.415 <= found <= true * 1.415


@given(st.lists(micros), st.lists(micros))
def test_counts_of_two_are_those_of_both_together(some, others):
    assert [a + b for a, b in zip(counts(some), counts(others), strict=True)] == counts(some + others)


def test_of_none_there_is_no_quantile():
    assert quantile([], 0.5) is quantile([0, 0], 0.5) is None


@pytest.mark.parametrize(
    ("delay", "index"), [(-5, 0), (999, 0), (1_000, 1), (2_000, 3), (2**62, BUCKETS - 1)]
)
def test_a_delay_has_its_bucket(delay, index):
    assert bucket(np.array([delay], np.int64)).tolist() == [index]
