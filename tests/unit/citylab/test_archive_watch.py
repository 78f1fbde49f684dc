"""When an archive needs somebody's care."""

import pytest

from citylab.archive_watch import BEHIND, SILENT, Archived


@pytest.mark.parametrize(
    ("archived", "state", "said"),
    [
        (Archived("citylab_archive_a", True, False, 8_192, 0.0), (False, False), "8,192 bytes"),
        (Archived("citylab_archive_a", False, False, 0, SILENT - 1), (False, True), "nobody receives"),
        (Archived("citylab_archive_a", False, False, 0, SILENT + 1), (True, False), "('citylab_archive_a')"),
        (Archived("citylab_archive_a", True, False, BEHIND + 1, 0.0), (True, False), "bytes of WAL"),
        (Archived("citylab_archive_a", False, True, 0, 1.0), (True, False), "begins anew"),
    ],
)
def test_what_is_told_of_an_archive(archived, state, said):
    assert (archived.unwell, archived.warn) == state
    assert said in archived.text
    assert archived.name == "a"
