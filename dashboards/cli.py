"""`citylab dashboards`: what Grafana shows, pushed to it."""

import json
from typing import Annotated

import typer

from citylab import wiring
from citylab.cli import Data, run
from citylab.errors import ConfigurationError
from citylab.settings import Settings
from citylab.times import now
from dashboards.grafana import StoreAddress, push

app = typer.Typer(
    help="Grafana dashboards as code.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def dashboards() -> None:
    """Grafana dashboards as code."""


@app.command("push")
def push_dashboards(
    *,
    data: Data = None,
    grafana_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Grafana's address, `http://user:password@host:port`, with a path where it has one. Default: `$CITYLAB_GRAFANA_URL`;"
            " a token goes into `$CITYLAB_GRAFANA_TOKEN`.",
        ),
    ] = None,
    store_url: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT/DATABASE",
            help="How Grafana reaches the store. Default: `$CITYLAB_GRAFANA_STORE_URL`, else the city's own address.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Provision the folder, the data source and the dashboards; run every panel's query once.

    Doing it again changes nothing. Exit code 1 when Grafana refuses or a panel's query fails.
    """

    async def work(settings: Settings) -> int:
        if not settings.grafana_url:
            raise ConfigurationError(
                "no Grafana is named: set CITYLAB_GRAFANA_URL or --grafana-url, such as http://admin:admin@127.0.0.1:3000"
            )
        report = await push(
            settings.grafana_url,
            token=settings.grafana_token,
            store=StoreAddress.parse(settings.grafana_store_url or wiring.store_url(settings)),
            password=wiring.grafana_password(settings),
            now_ms=now() // 1_000,
        )
        typer.echo(json.dumps(report.json(), indent=2) if as_json else "\n".join(report.lines()))
        return 1 if report.failed else 0

    run("dashboards push", work, data=data, grafana_url=grafana_url, grafana_store_url=store_url)
