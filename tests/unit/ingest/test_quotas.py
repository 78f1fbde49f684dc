"""A bucket gives what its rate and burst allow, to each gateway its own."""

from hypothesis import given
from hypothesis import strategies as st

from citylab.model import SECOND
from ingest.quotas import PACK_COSTS, PUT_BACK, Quota, Quotas

T0 = 1_767_225_600 * SECOND
PACK = 1_000 - PACK_COSTS  # bytes that count 1,000


def test_a_burst_and_then_the_rate():
    quotas = Quotas(Quota(rate=1_000, burst=5_000))
    taken = [quotas.take("gw", PACK, T0 + tenth * SECOND // 10) is None for tenth in range(200)]
    assert taken[:5] == [True] * 5
    assert taken.count(True) == 5 + 19


def test_who_waits_as_told_is_not_refused_again():
    quotas = Quotas(Quota(rate=1_000, burst=5_000))
    answers = [quotas.take("gw", PACK, T0) for _ in range(8)]
    assert answers == [None] * 5 + [T0 + n * SECOND for n in (1, 2, 3)]
    assert [quotas.take("gw", PACK, T0 + 3 * SECOND) for _ in range(3)] == [None] * 3
    assert quotas.over == {"gw": 3}


def test_no_wait_is_longer_than_until_the_bucket_is_full():
    quotas = Quotas(Quota(rate=1_000, burst=5_000))
    assert max(quotas.take("gw", PACK, T0) or 0 for _ in range(10_000)) == T0 + 5 * SECOND


def test_a_pack_larger_than_a_burst_still_fits_once_in_a_while():
    quotas = Quotas(Quota(rate=1_000, burst=5_000))
    assert quotas.take("gw", 1 << 20, T0) is None
    assert quotas.take("gw", 1 << 20, T0 + 4 * SECOND) == T0 + 5 * SECOND
    assert quotas.take("gw", 1 << 20, T0 + 5 * SECOND) is None


def test_each_gateway_has_its_own_and_none_is_no_quota():
    quotas = Quotas(Quota(rate=1, burst=1_000))
    assert all(quotas.take(f"gw-{n}", PACK, T0) is None for n in range(100))
    assert all(Quotas(Quota()).take("gw", 1 << 20, T0) is None for _ in range(100))


def test_what_is_full_again_is_forgotten_and_nothing_is_won_by_that():
    quotas = Quotas(Quota(rate=1_000, burst=5_000))
    for n in range(5):
        quotas.take("a", PACK, T0)
        quotas.take("b", PACK, T0 + (n + 1) * SECOND)
    quotas.forget(T0 + 5 * SECOND)
    assert list(quotas._buckets) == ["b"]
    assert [quotas.take("a", PACK, T0 + 5 * SECOND) is None for _ in range(6)] == [True] * 5 + [False]


@given(st.lists(st.tuples(st.integers(-2 * SECOND, 3 * SECOND), st.integers(0, 9_000)), max_size=60))
def test_never_more_than_burst_and_rate_whatever_comes_and_whatever_the_clock_does(steps):
    quotas, taken = Quotas(Quota(rate=1_000, burst=5_000)), 0
    at = latest = T0 + (steps[0][0] if steps else 0)
    passed = 0  # µs: what is older than the latest by less than is said is of another connection, not of another time
    for step, size in [(0, size) for _, size in steps[:1]] + steps[1:]:
        at += step
        passed += max(at - latest, 0)
        if at > latest or latest - at > PUT_BACK:
            latest = at
        until = quotas.take("gw", size, at)
        if until is None:
            taken += min(size + PACK_COSTS, 5_000)
        else:
            assert at < until
        assert taken <= 5_000 + passed / SECOND * 1_000 + 1


def test_a_clock_that_is_put_back_lets_nobody_wait_for_it():
    quotas = Quotas(Quota(rate=1_000, burst=5_000))
    assert quotas.take("gw", PACK, T0 + 86_400 * SECOND) is None
    taken = [quotas.take("gw", PACK, T0 + second * SECOND) is None for second in range(60)]
    assert sum(taken) >= 55
