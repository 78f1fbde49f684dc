"""The live page's own logic, whose tests run in Node; and the build."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dashboards import build as building
from dashboards.build import SOURCE, build, digest

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def test_the_pages_logic() -> None:
    """`node --test` over dashboards/live/tests: what is computed and not drawn."""
    node = building._node()
    tests = sorted(str(path) for path in (SOURCE / "tests").glob("*.test.ts"))
    assert tests
    ran = subprocess.run(
        [str(node), "--test", "--test-reporter=tap", "--import", str(SOURCE / "tests" / "json.mjs"), *tests],
        cwd=SOURCE, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_lock_file_names_no_address() -> None:
    assert "resolved" not in (SOURCE / "package-lock.json").read_text()


def test_a_second_build_has_nothing_to_do(tmp_path: Path) -> None:
    static = tmp_path / "static"
    assert build(static=static)
    page = (static / "index.html").read_text()
    assert "%SCRIPT%" not in page
    for name in [part.split('"')[0] for part in page.split("/static/")[1:]]:
        assert (static / name).is_file()
    stamps = {path.name: path.stat().st_mtime_ns for path in static.iterdir()}
    assert not build(static=static)
    assert stamps == {path.name: path.stat().st_mtime_ns for path in static.iterdir()}
    (static / "old-AAAAAAAA.js").touch()
    (static / "index.html").unlink()
    assert build(static=static)  # a page that somebody has broken is built again
    assert not (static / "old-AAAAAAAA.js").exists()


def test_two_builds_at_once_do_no_harm(tmp_path: Path) -> None:
    static = tmp_path / "static"
    done: list[bool] = []
    threads = [threading.Thread(target=lambda: done.append(build(static=static))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [False, True]
    assert (static / "index.html").is_file()


def test_another_source_is_another_build(tmp_path: Path) -> None:
    for name in ("src", "node_modules", "tests"):
        (tmp_path / name).mkdir()
    (tmp_path / "src" / "main.ts").write_text("1")
    before = digest(tmp_path)
    (tmp_path / "tests" / "main.test.ts").write_text("a test is not on the page")
    (tmp_path / "node_modules" / "x.js").write_text("what the lock file says")
    assert digest(tmp_path) == before
    (tmp_path / "src" / "main.ts").write_text("2")
    assert digest(tmp_path) != before


def test_a_wheel_has_nothing_to_build_from(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(building, "build", lambda **options: build(tmp_path, tmp_path / "static", **options))
    assert building.main([]) == 1
    assert "an installed wheel has it already" in capsys.readouterr().err


def test_the_command_says_what_it_did() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "dashboards.build"], capture_output=True, text=True, check=True
    )
    assert ran.stdout in {"live page: built\n", "live page: up to date\n"}
