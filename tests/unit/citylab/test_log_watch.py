"""When a topic needs somebody's care."""

from citylab.log_watch import findings
from citylab.model import Kept, Topic


def told(behind: float, lost: int = 0, topic: Topic = Topic.PACKS) -> list[tuple[bool, str]]:
    return [(one.unwell, one.text) for one in findings({topic: Kept(1, 1, behind, lost)})]


def test_a_reader_that_keeps_up_is_not_told_of():
    assert told(0.0) == told(0.49) == []


def test_half_of_the_retention_is_a_warning_and_four_fifths_are_unwell():
    ((unwell, text),) = told(0.5)
    assert not unwell
    assert "50%" in text
    assert "citylab processing" in text
    assert "CITYLAB_RETENTION_DAYS" in text
    assert [unwell for unwell, _ in told(0.79)] == [False]
    assert [unwell for unwell, _ in told(0.8)] == [True]


def test_what_is_lost_is_said_whatever_is_unread():
    ((unwell, text),) = told(0.0, lost=1_234)

    assert unwell
    assert "1,234 events" in text


def test_what_is_to_be_published_is_the_bridges_affair():
    ((_, text),) = told(0.6, topic=Topic.OUTBOUND)

    assert "citylab ingest" in text
