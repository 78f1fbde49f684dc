import json
from pathlib import Path

import pytest

from citylab.errors import ConfigurationError
from citylab.settings import CITY_FILE, FOREIGN, PREFIX, Settings, endpoints, is_secret, redacted

SECRETS = {
    "CITYLAB_GRAFANA_TOKEN": "glsa_s3cret",
    "CITYLAB_GRAFANA_DB_PASSWORD": "pa55word-s3cret",
    "CITYLAB_STORE_URL": "postgresql://citylab:s3cret@db.example:5432/citylab",
    "CITYLAB_BROKER_URL": "mqtts://bridge:s3cret@broker.example",
    "CITYLAB_GRAFANA_URL": "http://admin:s3cret@127.0.0.1:3000",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder to be in, with no variable of ours set."""
    import os

    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def running_city(folder: Path, **addresses) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / CITY_FILE).write_text(json.dumps(addresses))
    return folder


def test_without_anything_engines_are_embedded_and_only_this_machine_gets_in(folder):
    settings = Settings.load(data=folder / "city")

    assert (settings.broker_url, settings.log_url, settings.store_url) == (
        "embedded:",
        "sqlite:",
        "embedded:",
    )
    assert settings.http_host == "127.0.0.1"
    assert not settings.open


def test_a_running_citys_address_comes_before_the_default(folder):
    city = running_city(folder / "city", store_url="postgresql://a@127.0.0.1:1/a", http_port=8123)

    settings = Settings.load(data=city)

    assert settings.store_url == "postgresql://a@127.0.0.1:1/a"
    assert settings.http_port == 8123


def test_a_command_keeps_the_log_as_long_as_the_city_that_runs(folder):
    city = running_city(folder / "city", retention_days=30.0, retention_bytes=1 << 30)

    settings = Settings.load(data=city)

    assert (settings.retention_days, settings.retention_bytes) == (30.0, 1 << 30)


def test_the_env_file_comes_before_a_running_city(folder):
    city = running_city(folder / "city", http_port=8123)
    (folder / ".env").write_text("CITYLAB_HTTP_PORT=8200\n")

    assert Settings.load(data=city).http_port == 8200


def test_the_environment_comes_before_the_env_file(folder, monkeypatch):
    (folder / ".env").write_text("CITYLAB_HTTP_PORT=8200\nCITYLAB_PAGE_LIMIT=7\n")
    monkeypatch.setenv("CITYLAB_HTTP_PORT", "8300")

    settings = Settings.load()

    assert settings.http_port == 8300
    assert settings.page_limit == 7


def test_an_empty_variable_is_not_set(folder):
    assert Settings.load({"CITYLAB_HTTP_PORT": ""}, data=folder).http_port == 8000


def test_who_starts_engines_does_not_trust_the_addresses_that_a_killed_city_left_behind(folder):
    city = running_city(folder / "city", store_url="postgresql://a@127.0.0.1:1/a", http_port=8123)

    settings = Settings.load(data=city, of_running_city=False)

    assert settings.store_url == "embedded:"
    assert settings.http_port == 8000


def test_a_damaged_file_of_addresses_is_named(folder):
    (folder / CITY_FILE).write_text("{")

    with pytest.raises(ConfigurationError, match=rf"{CITY_FILE} is damaged"):
        Settings.load({}, data=folder)


def test_the_command_lines_folder_comes_before_the_variable(folder):
    settings = Settings.load({"CITYLAB_DATA": str(folder / "b")}, data=folder / "a")

    assert settings.data == folder / "a"


def test_a_folder_is_absolute_from_the_start(folder):
    assert Settings.load({"CITYLAB_DATA": "here"}).data == folder / "here"


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("CITYLAB_STORE_ULR", "CITYLAB_STORE_URL"),
        ("CITYLAB_HTTPPORT", "CITYLAB_HTTP_PORT"),
        ("CITYLAB_LOGLEVEL", "CITYLAB_LOG_LEVEL"),
        ("CITYLAB_BROKER", "CITYLAB_BROKER_URL"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_known_one(folder, mistyped, meant):
    with pytest.raises(
        ConfigurationError, match=f"{mistyped} is no setting of Citylab; did you mean {meant}"
    ):
        Settings.load({mistyped: "x"}, data=folder)


def test_a_mistyped_line_of_the_env_file_is_refused_too(folder):
    (folder / ".env").write_text("CITYLAB_STORE_ULR=x\n")

    with pytest.raises(ConfigurationError, match="CITYLAB_STORE_ULR"):
        Settings.load()


@pytest.mark.parametrize("name", [*FOREIGN, "CITYLAB_TEST_STORE_URL"])
def test_variables_of_the_tests_and_of_compose_are_known(folder, name):
    Settings.load({name: "1"}, data=folder)


def test_other_programs_variables_are_none_of_ours(folder):
    Settings.load({"CITY": "x", "PGHOST": "y"}, data=folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CITYLAB_HTTP_PORT", "65536"),
        ("CITYLAB_HTTP_PORT", "-1"),
        ("CITYLAB_HTTP_PORT", "http"),
        ("CITYLAB_PAGE_LIMIT", "0"),
        ("CITYLAB_PAGE_LIMIT", "10001"),
        ("CITYLAB_PARTITIONS", "0"),
        ("CITYLAB_BRIDGE_NAME", "one two"),
        ("CITYLAB_PACK_BYTES", "1e3"),
        ("CITYLAB_FUTURE_SECONDS", "-1"),
        ("CITYLAB_STATEMENT_SECONDS", "0"),
        ("CITYLAB_LOG_LEVEL", "loud"),
        ("CITYLAB_OPEN", "maybe"),
        ("CITYLAB_EARLIEST", "long ago"),
    ],
)
def test_a_value_outside_its_limits_names_the_setting(folder, name, value):
    with pytest.raises(ConfigurationError, match=name):
        Settings.load({name: value}, data=folder)


def test_values_have_their_types(folder):
    settings = Settings.load(
        {"CITYLAB_OPEN": "1", "CITYLAB_STATEMENT_SECONDS": "2.5", "CITYLAB_PARTITIONS": "8"}, data=folder
    )

    assert settings.open is True
    assert settings.statement_seconds == 2.5
    assert settings.partitions == 8


def test_secrets_are_never_shown(folder):
    settings = Settings.load(SECRETS, data=folder)

    for text in (repr(settings), str(settings), str(settings.shown()), f"{settings}"):
        assert "s3cret" not in text
    assert settings.shown()["CITYLAB_STORE_URL"] == "postgresql://citylab:***@db.example:5432/citylab"


def test_a_wrong_secret_is_not_shown_either():
    assert is_secret("grafana_token")
    assert is_secret("GRAFANA_DB_PASSWORD")
    assert not is_secret("store_url")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("embedded:", "embedded:"),
        ("kafka://a:1,b:2/prefix", "kafka://a:1,b:2/prefix"),
        ("mqtt://user@host:1", "mqtt://user@host:1"),
        ("mqtt://:only@host", "mqtt://:***@host"),
        ("postgresql://u:p@ss@host/d", "postgresql://u:***@host/d"),
        ("postgresql://u:p@a:1,b:2/d?connect_timeout=2", "postgresql://u:***@a:1,b:2/d?connect_timeout=2"),
        (
            "postgresql://a,b/d?user=u&password=p%40ss&sslpassword=q",
            "postgresql://a,b/d?user=u&password=***&sslpassword=***",
        ),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    assert redacted(url) == shown


def test_a_child_process_resolves_to_the_same_settings(folder):
    settings = Settings.load(SECRETS | {"CITYLAB_OPEN": "1", "CITYLAB_STATEMENT_SECONDS": "2.5"}, data=folder)

    assert Settings.load(settings.environment()) == settings


@pytest.mark.parametrize(
    ("broker", "given", "told"),
    [
        ("embedded:", "", []),
        ("mqtt://10.0.0.5:1883", "", ["mqtt://10.0.0.5:1883"]),
        ("mqtts://bridge:s3cret@broker:8883?ca=/ca.pem", "", ["mqtts://broker:8883"]),
        ("mqtt://bridge:s3cret@broker", "mqtts://a.example:8883, wss://b.example/mqtt", ["mqtts://a.example:8883", "wss://b.example/mqtt"]),
    ],
)  # fmt: skip
def test_clients_are_told_where_the_broker_is_and_no_secret(broker, given, told):
    settings = Settings.load({"CITYLAB_BROKER_URL": broker, "CITYLAB_MQTT_ENDPOINTS": given})
    assert endpoints(settings) == told
