from typer.testing import CliRunner

from dashboards.cli import app


def test_help_names_the_settings_and_options() -> None:
    told = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, ["push", "--help"])

    assert told.exit_code == 0
    for word in (
        "CITYLAB_GRAFANA_URL",
        "CITYLAB_GRAFANA_TOKEN",
        "CITYLAB_GRAFANA_STORE_URL",
        "--json",
        "--data",
    ):
        assert word in told.output


def test_without_a_grafana_it_says_which_setting_names_one(tmp_path) -> None:
    told = CliRunner(env={"CITYLAB_GRAFANA_URL": ""}).invoke(app, ["push", "--data", str(tmp_path)])

    assert told.exit_code == 2
    assert "CITYLAB_GRAFANA_URL" in told.stderr
