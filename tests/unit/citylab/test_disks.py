import shutil

from citylab.disks import findings


def test_a_disk_is_told_of_once_soon_or_now(tmp_path):
    (tmp_path / "log").mkdir()
    folders = [tmp_path, tmp_path / "log", tmp_path / "nowhere"]
    left = shutil.disk_usage(tmp_path).free

    assert findings(folders, low=0, full=0) == []
    (soon,) = findings(folders, low=2 * left, full=0)
    (now,) = findings(folders, low=4 * left, full=2 * left)

    assert (soon.unwell, now.unwell) == (False, True)
    assert f"MB are left on the disk of {tmp_path}: make room" in now.text
