"""A run's plan: the same for the same seed, complete, and data whose keys are unique whatever clocks do."""

from collections import Counter
from itertools import islice

import pytest

from citylab.model import DAY, HOUR, MINUTE
from simulators.torture_plan import BROKEN_AT, KILL_POINTS, STREAMS, arms, faults, scripts

TARGETS = {"kill": ["ingest", "broker"], "pause": ["ingest"], "cut": ["line"], "fill": ["log"]}
BEGIN = 1_800_000_000_000_000


def test_a_seed_repeats_its_plan_and_another_makes_another():
    assert faults(7, 30, TARGETS) == faults(7, 30, TARGETS)
    assert faults(7, 30, TARGETS) != faults(8, 30, TARGETS)
    assert list(islice(arms(7, "edge", "lamp"), 20)) == list(islice(arms(7, "edge", "lamp"), 20))
    assert list(islice(arms(7, "edge", "lamp"), 20)) != list(islice(arms(7, "edge", "post"), 20))


def test_every_fault_comes_once_before_one_comes_again_and_data_flows_behind_the_last():
    plan = faults(3, 60, TARGETS)

    assert [fault.at for fault in plan] == sorted(fault.at for fault in plan)
    assert 0 <= plan[0].at <= plan[-1].at <= 48
    struck = Counter((fault.kind, fault.target) for fault in plan)
    assert len(struck) == 5
    assert max(struck.values()) - min(struck.values()) <= 1


def test_even_the_shortest_run_has_a_fault():
    assert len(faults(1, 0.5, TARGETS)) == 1


@pytest.mark.parametrize("service", KILL_POINTS)
def test_a_service_is_armed_with_each_of_its_points_in_turn(service):
    armed = [arm.point for arm in islice(arms(5, service, "one"), 200) if arm]
    count = len(KILL_POINTS[service])

    assert set(armed[:count]) == set(KILL_POINTS[service])
    assert set(armed[count : 2 * count]) == set(KILL_POINTS[service])


@pytest.mark.parametrize("broken", BROKEN_AT)
def test_a_broken_build_is_armed_where_it_breaks_and_nowhere_else(broken):
    where, point = BROKEN_AT[broken]
    for service in KILL_POINTS:
        armed = {arm.point for arm in islice(arms(5, service, "one", broken), 50) if arm}
        assert armed == ({point} if service == where else set())


@pytest.mark.parametrize("seed", range(20))
def test_no_stream_has_two_readings_of_one_time(seed):
    for script in scripts(seed, BEGIN, gateways=3, rate=300, seconds=40):
        columns = script.columns()
        keys = set(zip(columns.stream.tolist(), columns.time.tolist(), strict=True))
        assert len(keys) == len(columns) == script.readings


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


def test_history_crosses_a_midnight_and_lies_behind_us():
    _, script = scripts(4, BEGIN, gateways=2, rate=500, seconds=60)
    time = script.columns().time

    assert len(set((time // DAY).tolist())) >= 2
    assert len(set((time // HOUR).tolist())) > 24
    assert time.max() < BEGIN
