"""The wheel: it has what it needs, a gateway's part of it weighs little, and it runs outside the checkout."""

import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from project.documents import ROOT, clean_environment
from stores import reachable_folder

from dashboards.build import build

PACKAGES = ("citylab", "edge", "ingest", "processing", "api", "dashboards", "simulators")
PLATFORM_ONLY = (
    "aiokafka",
    "psycopg",
    "psycopg_pool",
    "fastapi",
    "starlette",
    "uvicorn",
    "numpy",
    "shapely",
    "iotcore",
)


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in clean_environment().items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return subprocess.run(
        command, cwd=cwd, env=environment | {"COLUMNS": "200"} | variables, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Outside the checkout, where the embedded PostgreSQL may be too."""
    with reachable_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    """The wheel, as a release would build it."""
    build()
    arguments = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder / "wheel", ROOT)
    succeeded(run(sys.executable, "-m", "pip", "wheel", *arguments, cwd=folder))
    (wheel,) = (folder / "wheel").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def gateway(wheel: Path, folder: Path) -> Path:
    """The Python of an environment with nothing but `citylab[edge]`, at the locked versions."""
    locked = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(line.removesuffix("\\").strip() for line in locked) + "\n")
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    python = folder / "gateway" / "bin" / "python"
    succeeded(run(uv, "venv", "--quiet", "--python", sys.executable, folder / "gateway", cwd=folder))
    wanted = f"citylab[edge] @ {wheel.as_uri()}"
    succeeded(run(uv, "pip", "install", "--quiet", "--python", python, wanted, "-c", constraints, cwd=folder))
    return python


@pytest.fixture(scope="module")
def platform(wheel: Path, folder: Path) -> Path:
    """The Python of an environment with the wheel and this one's other packages: the checkout is not among them."""
    succeeded(run(sys.executable, "-m", "venv", "--without-pip", folder / "platform", cwd=folder))
    python = folder / "platform" / "bin" / "python"
    (site,) = (folder / "platform" / "lib").glob("python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    ours = Path(sysconfig.get_path("purelib"))
    for package in ours.iterdir():  # no .pth: one of them leads to the checkout
        if package.suffix != ".pth" and not package.name.startswith(("citylab-", "_editable", "__editable")):
            (site / package.name).symlink_to(package)
    return python


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_there_and_typed(names: set[str], package: str) -> None:
    assert f"{package}/__init__.py" in names
    assert f"{package}/py.typed" in names


def test_it_has_every_module_of_the_checkout(names: set[str]) -> None:
    here = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if "node_modules" not in file.parts
    }

    assert here <= names


def test_it_has_the_stores_schema(names: set[str]) -> None:
    here = {
        f"citylab/adapters/migrations/{f.name}" for f in (ROOT / "citylab/adapters/migrations").glob("*.sql")
    }

    assert here
    assert here <= names


def test_it_has_the_live_page_built(names: set[str]) -> None:
    static = {name for name in names if name.startswith("dashboards/static/")}

    assert "dashboards/static/index.html" in static
    assert any(name.endswith(".js") for name in static)
    assert any(name.endswith(".css") for name in static)
    assert any(name.endswith(".woff2") for name in static)


def test_it_has_nothing_that_nobody_runs(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}

    assert tops == set(PACKAGES)
    assert not [name for name in names if name.startswith("dashboards/live/") or "node_modules" in name]


def test_it_has_the_licence_and_the_readme(wheel: Path, names: set[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "# Citylab" in text
    assert "License-Expression: Apache-2.0" in text


def test_a_gateway_has_the_commands_that_work_there_and_no_others(gateway: Path, folder: Path) -> None:
    shown = succeeded(run(gateway.with_name("citylab"), "--help", cwd=folder))

    assert "edge" in shown
    for command in ("up", "ingest", "processing", "replay", "dashboards", "bench", "doctor"):
        assert f" {command} " not in shown
    assert run(gateway.with_name("citylab"), "up", cwd=folder).returncode == 2


def test_a_gateway_imports_no_engine_of_the_platform(gateway: Path, folder: Path) -> None:
    script = (
        "import sys, edge.cli\n"
        "try: edge.cli.app(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        f"print([name for name in {PLATFORM_ONLY} if name in sys.modules])"
    )

    shown = succeeded(run(gateway, "-c", script, cwd=folder))

    assert "--descriptor" in shown
    assert shown.splitlines()[-1] == "[]"


def test_a_gateway_could_not_import_them_either(gateway: Path, folder: Path) -> None:
    script = f"import importlib.util as u; print([n for n in {PLATFORM_ONLY} if u.find_spec(n)])"

    assert succeeded(run(gateway, "-c", script, cwd=folder)).strip() == "[]"


def test_a_gateway_runs_until_it_needs_its_broker(gateway: Path, folder: Path) -> None:
    done = run(
        gateway.with_name("citylab"), "edge", "--gateway", "lamp-7", "--descriptor",
        ROOT / "docs" / "examples" / "lamp-7.json", "--data", folder / "nowhere", cwd=folder,
    )  # fmt: skip

    assert done.returncode == 2
    assert "no city is running" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_wheel_runs_outside_the_checkout(platform: Path, folder: Path) -> None:
    script = "import citylab, api, dashboards; print(citylab.__file__, api.__file__, dashboards.__file__)"

    assert str(ROOT) not in succeeded(run(platform, "-c", script, cwd=folder))
    done = run(platform, "-m", "citylab", "doctor", "--data", folder / "none", cwd=folder)
    assert done.returncode == 1
    assert "there is no city in" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_city_of_the_wheel_serves_its_page(platform: Path, folder: Path) -> None:
    """It starts in a process that fetches the page as soon as it is there, then stops it in order."""
    script = """
import json, pathlib, signal, subprocess, sys, time, urllib.request
data = pathlib.Path(sys.argv[1])
city = subprocess.Popen([sys.executable, "-m", "citylab", "up", "--data", data, "--port", "0", "--no-simulate"])
try:
    deadline = time.monotonic() + 60
    while True:
        assert city.poll() is None and time.monotonic() < deadline
        try:
            port = json.loads((data / "city.json").read_text())["http_port"]
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
            break
        except (OSError, ValueError, KeyError):
            time.sleep(0.1)
    sys.stderr.write(f"PAGE {b'<title' in page}\\n")
finally:
    city.send_signal(signal.SIGINT)
sys.exit(city.wait(20))
"""
    done = run(platform, "-c", script, folder / "city", cwd=folder, CITYLAB_MQTT_PORT="0")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "PAGE True" in done.stderr
    assert "Citylab is up in" in done.stdout


def test_the_version_is_said_once() -> None:
    from citylab import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
