import math

import pytest

from edge.window import Window


def window(**options) -> Window:
    return Window(draw=lambda: 0.0, **options)


def fill(window: Window, now: float, *, first: int = 1, puback: bool = True, live: bool = False) -> list[int]:
    """Send as many packs as there is room for; return their numbers."""
    seqs = list(range(first, first + window.room()))
    for seq in seqs:
        window.sent(seq, 1_000 + seq, now, live=live)
    if puback:
        window.pubacks([1_000 + seq for seq in seqs], now)
    return seqs


def test_it_starts_at_eight_and_grows_with_acknowledgements_to_its_limit():
    w = window(most=50)
    assert w.room() == 8
    first = 1
    for expected in (16, 32, 50, 50):
        seqs = fill(w, 0.0, first=first)
        assert w.room() == 0
        w.acknowledged(seqs[0], seqs[-1])
        assert w.size == w.room() == expected
        first += len(seqs)


def test_silence_halves_it_down_to_one_and_doubles_the_time_out_up_to_its_limit():
    w = window(longest_timeout=60.0)
    fill(w, 0.0)
    now, sizes, waits = 0.0, [], []
    for _ in range(7):
        waits.append(w.next_due() - now)
        now = w.next_due()
        for sent in w.expire(now):
            if w.room():
                w.sent(sent.seq, sent.packet, now + 0.01)
        w.pubacks(range(2_000), now + 0.01)
        now += 0.01
        sizes.append(w.size)

    assert sizes == [4, 2, 1, 1, 1, 1, 1]
    assert waits == pytest.approx([5, 10, 20, 40, 60, 60, 60], abs=0.02)


def test_packs_that_were_on_the_way_together_halve_it_once():
    jitter = iter([0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0])
    w = Window(draw=lambda: next(jitter))
    fill(w, 0.0)

    late = [sent.seq for now in (5.0, 5.6, 6.1, 7.5) for sent in w.expire(now)]

    assert sorted(late) == list(range(1, 9))
    assert w.size == 4


def test_after_a_time_out_it_grows_slowly():
    w = window()
    fill(w, 0.0)
    w.expire(5.0)
    seqs = fill(w, 5.1, first=100)
    assert len(seqs) == 4

    w.acknowledged(seqs[0], seqs[-1])

    assert w.size == 5  # one a round


def test_an_acknowledgement_ends_the_doubling():
    w = window()
    fill(w, 0.0)
    w.expire(5.0)
    w.sent(1, 1, 5.1)
    w.acknowledged(1, 1)
    w.sent(2, 2, 6.0)
    w.pubacks([2], 6.0)

    assert w.next_due() == 11.0


def test_the_time_out_counts_from_the_puback():
    w = window()
    w.sent(1, 1, 0.0)
    assert w.expire(29.0) == []
    assert w.next_due() == math.inf

    w.pubacks([1], 29.0)

    assert w.next_due() == 34.0
    assert [sent.seq for sent in w.expire(34.0)] == [1]


def test_a_message_without_puback_makes_the_connection_suspect():
    w = window()
    assert w.stuck_at() == math.inf
    w.sent(0, 1, 2.0)  # a status, say
    w.sent(1, 2, 5.0)
    assert w.stuck_at() == 32.0

    w.pubacks([1], 6.0)
    assert w.stuck_at() == 35.0

    w.acknowledged(1, 1)  # the platform has it: the PUBACK does not matter any more
    assert w.stuck_at() == math.inf


def test_half_is_kept_for_live_packs_where_there_are_any():
    w = window()
    assert w.backlog_room(reserve=False) == 8
    assert w.backlog_room(reserve=True) == 4
    for seq in range(1, 5):
        w.sent(seq, seq, 0.0)

    assert w.backlog_room(reserve=True) == 0
    assert w.room() == 4

    for seq in range(5, 8):
        w.sent(seq, seq, 0.0, live=True)
    assert w.room() == 1
    w.acknowledged(1, 4)
    assert w.backlog_room(reserve=True) == 6  # of twelve


def test_a_bridge_that_is_back_has_waiting_packs_sent_again_soon_without_blame():
    w = Window(draw=lambda: 0.5)
    fill(w, 0.0)
    w.expire(7.0)
    w.sent(1, 1, 7.0)
    w.pubacks([1], 7.0)
    size = w.size

    w.hurry(8.0)

    assert w.next_due() == 10.5
    assert [sent.seq for sent in w.expire(10.5)] == [1]
    assert w.size == size


def test_another_connection_starts_small_and_knows_nothing_of_the_old_one():
    w = window()
    seqs = fill(w, 0.0)
    w.acknowledged(seqs[0], seqs[-1])
    seqs = fill(w, 0.0, first=9, puback=False)

    assert [sent.seq for sent in w.restart()] == seqs

    assert w.size == w.room() == 8
    assert w.stuck_at() == w.next_due() == math.inf


def test_ranges_of_acknowledgements_may_be_larger_than_what_is_on_the_way():
    w = window()
    fill(w, 0.0, first=100)

    assert w.acknowledged(1, 2**53 - 1) == 8
    assert w.acknowledged(1, 2**53 - 1) == 0


def test_with_a_bridge_that_is_back_it_grows_fast_again():
    w = window()
    fill(w, 0.0)
    w.expire(5.0)

    w.hurry(6.0)

    seqs = fill(w, 6.0, first=100)
    w.acknowledged(seqs[0], seqs[-1])
    assert w.size == 8
