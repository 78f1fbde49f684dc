"""PostgreSQL's own programs: where those are that fit a server."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from psycopg import conninfo

from citylab.adapters.embedded_postgres import package
from citylab.errors import ConfigurationError

_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")  # Debian's, Red Hat's
_PATIENCE = {"connect_timeout": "5", "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3"}  # fmt: skip


def program(name: str, major: int, *, same: bool = False) -> Path:
    """The program for a server of this major version: of the same one, else of a newer one unless `same`.

    Looked for in PATH, where the system has its PostgreSQL, and beside the embedded one. Raises `ConfigurationError`.
    """
    found = {version: path for path in _candidates(name) if (version := major_of(path))}
    fitting = [version for version in found if version == major or (version > major and not same)]
    if not fitting:
        have = f"here are those of {', '.join(map(str, sorted(found)))}" if found else "there is none here"
        raise ConfigurationError(
            f"PostgreSQL {major} needs a {name} that is {'of that version' if same else 'not older'}, and {have}: install"
            f" PostgreSQL {major}'s programs (postgresql-client-{major} or postgresql-{major}), or put them into PATH"
        )
    return found[min(fitting)]


def reaching(url: str) -> tuple[str, dict[str, str]]:
    """How a program reaches the server: words for its -d, and an environment, which has the password."""
    parts = conninfo.conninfo_to_dict(url)
    password = parts.pop("password", None)
    environment = os.environ | {"TZ": "UTC"} | ({"PGPASSWORD": str(password)} if password else {})
    return conninfo.make_conninfo("", **(_PATIENCE | parts)), environment


def _candidates(name: str) -> Iterator[Path]:
    """Later ones come first."""
    with suppress(ConfigurationError):  # the embedded one is not everywhere
        yield package() / "pginstall" / "bin" / name
    for place in _PLACES:
        yield from sorted(Path("/").glob(f"{place[1:]}/{name}"))
    for folder in reversed(os.get_exec_path()):
        yield Path(folder) / name


def major_of(path: Path) -> int | None:
    """The major version of a program of PostgreSQL; None of what is not there."""
    if not os.access(path, os.X_OK):
        return None
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)  # noqa: S603 -- as found
    version = re.search(r"\) (\d+)", told.stdout)
    return int(version[1]) if version else None
