"""`citylab migrate`: the store's schema."""

import typer

from citylab import wiring
from citylab.cli import Data, run, single
from citylab.settings import Settings, redacted


async def _migrate(settings: Settings) -> None:
    applied = await wiring.migrate(settings)
    typer.echo(f"{redacted(settings.store_url)}: {', '.join(applied) if applied else 'nothing to do'}")


def migrate(data: Data = None) -> None:
    """Bring the store's schema up to date. Safe to run twice, and from several machines at once.

    Makes observations a hypertable where the server offers TimescaleDB, and the role that Grafana reads through.
    """
    run("migrate", _migrate, data=data)


app = single(migrate)
