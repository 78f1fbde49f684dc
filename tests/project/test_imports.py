"""Who may import whom, and what importing does: nothing."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from project.documents import ROOT, clean_environment

PACKAGES = ("citylab", "edge", "ingest", "processing", "api", "dashboards", "simulators")
# Runs in a process of its own: imports a module and says what that did.
WATCH = """
import importlib, json, os, sys, threading
did, names = [], sys.argv[1:]

def watch(event, arguments):
    if event == "open":
        file, mode = arguments[0], arguments[1]
        writes = isinstance(mode, str) and set(mode) & set("wax+")
        if isinstance(file, str) and (writes or file.endswith((".env", ".sqlite", "city.json"))):
            if "__pycache__" not in file:
                did.append(f"opened {file}")
    elif event == "socket.bind" and arguments[1] == ("::1", 0):
        pass  # how urllib3 and niquests find out whether there is IPv6
    elif event in {"socket.bind", "socket.connect", "socket.sendto", "sqlite3.connect", "subprocess.Popen", "os.mkdir",
                   "os.fork", "os.system", "os.posix_spawn", "shutil.rmtree", "os.remove", "os.rename"}:
        did.append(f"{event} {arguments[:2]}")

reads = []
class Environment(dict):
    def _see(self, name):
        if isinstance(name, str) and name.startswith("CITYLAB_"):
            reads.append(name)
    def get(self, name, default=None):
        self._see(name); return super().get(name, default)
    def __getitem__(self, name):
        self._see(name); return super().__getitem__(name)

os.environ = Environment(os.environ)
sys.dont_write_bytecode = True
sys.addaudithook(watch)
threads = threading.active_count()
found = {}
for name in names:
    did.clear(), reads.clear()
    try:
        importlib.import_module(name)
    except BaseException as error:
        did.append(f"raised {error!r}")
    if did or reads:
        found[name] = did + [f"read {r}" for r in reads]
if threading.active_count() != threads:
    found["threads"] = [t.name for t in threading.enumerate()]
print(json.dumps(found))
"""


def modules() -> list[str]:
    found = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if "node_modules" in parts or parts[-1] == "__main__":
                continue
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def test_the_contracts_of_import_linter_hold() -> None:
    told = subprocess.run(
        [Path(sysconfig.get_path("scripts")) / "lint-imports", "--no-cache"],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert told.returncode == 0, told.stdout


def test_importing_opens_nothing_and_reads_no_setting(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", WATCH, *modules()],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip

    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout.splitlines()[-1]) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is(package: str) -> None:
    assert (ROOT / package / "__init__.py").read_text().startswith('"""')


def test_there_is_no_room_for_everything() -> None:
    vague = {"common", "core", "shared", "utils", "util", "helpers", "misc"}

    assert not [name for name in modules() if set(name.split(".")) & vague]
