"""A run's plan: the same for the same seed, complete, and data whose keys are unique whatever clocks do."""

from collections import Counter

import pytest

from citylab.model import DAY, HOUR, MINUTE
from simulators.torture_plan import BROKEN_AT, KILL_POINTS, LONG, STREAMS, Arms, faults, scripts

TARGETS = {"kill": ["ingest", "broker"], "pause": ["ingest"], "cut": ["line"], "fill": ["log"]}
BEGIN = 1_800_000_000_000_000


def lives(seed, service, name, broken="", *, hit=(), count=40, **how):
    """How a service is armed at its first starts, all points but those in `hit` being missed."""
    arms = Arms(seed, service, name, broken)
    return [arms.next(hit, **how) for _ in range(count)]


def test_a_seed_repeats_its_plan_and_another_makes_another():
    assert faults(7, 30, TARGETS) == faults(7, 30, TARGETS)
    assert faults(7, 30, TARGETS) != faults(8, 30, TARGETS)
    assert lives(7, "edge", "lamp") == lives(7, "edge", "lamp")
    assert lives(7, "edge", "lamp") != lives(7, "edge", "post")


def test_every_fault_comes_once_before_one_comes_again_and_data_flows_behind_the_last():
    plan = faults(3, 60, TARGETS)

    assert [fault.at for fault in plan] == sorted(fault.at for fault in plan)
    assert 0 <= plan[0].at <= plan[-1].at <= 48
    struck = Counter((fault.kind, fault.target) for fault in plan)
    assert len(struck) == 5
    assert max(struck.values()) - min(struck.values()) <= 1


def test_even_the_shortest_run_has_a_fault():
    assert len(faults(1, 0.5, TARGETS)) == 1


def test_a_log_that_is_a_process_is_killed_last_and_only_then_while_the_run_is_short():
    targets = TARGETS | {"kill": ["ingest", "log"], "pause": ["log"]}
    for seed in range(20):
        *before, last = faults(seed, LONG - 1, targets)
        assert (last.at, last.kind, last.target) == (47.2, "kill", "log")
        assert ("kill", "log") not in {(fault.kind, fault.target) for fault in before}
        assert any(fault.target == "log" for fault in before), "it is paused"
    *before, last = faults(1, LONG, targets)
    assert sum((fault.kind, fault.target) == ("kill", "log") for fault in before) > 1


@pytest.mark.parametrize("service", KILL_POINTS)
def test_a_service_is_armed_with_each_point_in_turn_until_it_is_hit(service):
    points = set(KILL_POINTS[service])
    count = len(points)
    armed = [arm.point for arm in lives(5, service, "one", count=3 * count)]
    assert set(armed[:count]) == points
    assert armed == armed[:count] * 3

    missing = armed[0]
    arms, hit = Arms(5, service, "one"), set()
    for _ in range(count):
        arm = arms.next(hit)
        assert arm
        assert arm.point not in hit
        hit |= {arm.point} - {missing}
    assert arms.next(hit).point == missing, "something else had ended that life"


@pytest.mark.parametrize("service", KILL_POINTS)
def test_when_all_are_hit_a_service_is_armed_at_random_and_sometimes_not(service):
    points = set(KILL_POINTS[service])
    armed = lives(5, service, "one", hit=points, count=200)
    assert {arm.point for arm in armed if arm} == points
    assert 20 < armed.count(None) < 80
    assert lives(5, service, "one", hit=points, only_missing=True) == [None] * 40


@pytest.mark.parametrize("service", KILL_POINTS)
def test_a_point_is_armed_for_a_time_that_comes_soon(service):
    for arm in lives(5, service, "one", count=200):
        assert 1 <= arm.nth <= (2 if "fold" in arm.point else 15)


@pytest.mark.parametrize("broken", BROKEN_AT)
def test_a_broken_build_is_armed_where_it_breaks_and_nowhere_else(broken):
    where, point = BROKEN_AT[broken]
    for service in KILL_POINTS:
        for hit in ((), (point,)):
            armed = {arm.point for arm in lives(5, service, "one", broken, hit=hit) if arm}
            assert armed == ({point} if service == where else set())


@pytest.mark.parametrize("seed", range(20))
def test_no_stream_has_two_readings_of_one_time(seed):
    for script in scripts(seed, BEGIN, gateways=3, rate=300, seconds=40):
        columns = script.columns()
        keys = set(zip(columns.stream.tolist(), columns.time.tolist(), strict=True))
        assert len(keys) == len(columns) == script.readings == script.planned


def test_a_script_makes_the_same_data_anywhere_and_gateways_differ():
    one, other, *_ = scripts(4, BEGIN, gateways=2, rate=100, seconds=20)

    assert (one.columns().value == one.columns().value).all()
    assert (one.columns().value != other.columns().value).any()


def test_clocks_are_set_while_they_measure():
    (script,) = scripts(4, BEGIN, gateways=1, rate=500, seconds=60)
    columns = script.columns()
    steps = columns.time[STREAMS::STREAMS] - columns.time[:-STREAMS:STREAMS]

    assert len(set(steps.tolist())) > 1, "it jumps"
    assert abs(columns.time - BEGIN).max() < 30 * MINUTE, "near enough to now to be believed"


@pytest.mark.parametrize("longer", [0, 90])
def test_history_crosses_a_midnight_and_lies_behind_us_however_long_it_takes(longer):
    _, script = scripts(4, BEGIN, gateways=2, rate=500, seconds=60, longer=longer)
    time = script.columns().time
    planned = time[: script.planned]

    assert len(set((planned // DAY).tolist())) >= 2
    assert len(set((planned // HOUR).tolist())) > 24
    assert time.max() < BEGIN
    assert len(time) == (60 + longer) * 250
