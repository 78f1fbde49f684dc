"""The compose file: sound, closed to the network, and with the same engine settings as `deploy/engines.py`."""

import importlib.resources
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """Return the compose file, parsed."""
    parsed: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return parsed


@pytest.fixture(scope="module")
def engines() -> ModuleType:
    """Load deploy/engines.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("citylab_deploy_engines", DEPLOY / "engines.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


def settings_of(config: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in config.splitlines())


def test_it_satisfies_the_compose_specification(compose: dict[str, Any]) -> None:
    pytest.importorskip("check_jsonschema", reason="the specification's schema comes with check-jsonschema")
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text())

    jsonschema.validate(compose, schema)


def test_it_has_the_engines_and_grafana(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"mosquitto", "kafka", "timescale", "grafana"}


def test_nothing_is_reachable_from_other_machines(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["ports"], name
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service["ports"]), name
        assert "network_mode" not in service, name


def test_every_image_is_pinned_to_a_version(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert re.search(r":\d+\.\d+\.\d+(-\w+)?$", service["image"]), name


def test_every_service_says_whether_it_is_healthy_and_comes_back(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}, name
        assert service["restart"] == "unless-stopped", name


def test_what_must_last_lies_in_named_volumes(compose: dict[str, Any]) -> None:
    mounted = [volume for service in compose["services"].values() for volume in service.get("volumes", [])]

    assert {volume.split(":")[0] for volume in mounted} == set(compose["volumes"])


def test_every_secret_must_be_given_and_none_has_a_default(compose: dict[str, Any]) -> None:
    secrets = [
        str(value)
        for service in compose["services"].values()
        for name, value in service.get("environment", {}).items()
        if SECRET.search(name)
    ]

    assert len(secrets) == 2
    assert all(re.fullmatch(r"\$\{\w+:\?.+\}", value) for value in secrets)


def test_mosquitto_has_the_native_settings(compose: dict[str, Any], engines: ModuleType) -> None:
    settings = settings_of(compose["configs"]["mosquitto"]["content"])

    assert settings == engines.MOSQUITTO_SETTINGS | {"listener": "1883", "log_dest": "stderr"}


def test_kafka_has_the_native_settings_and_version(compose: dict[str, Any], engines: ModuleType) -> None:
    kafka = compose["services"]["kafka"]
    native = {
        f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in engines.KAFKA_SETTINGS.items()
    }

    assert kafka["environment"].items() >= native.items()
    assert kafka["environment"]["KAFKA_HEAP_OPTS"] == engines.KAFKA_HEAP
    assert kafka["image"] == f"apache/kafka:{engines.KAFKA_VERSION}"


def test_timescale_has_the_native_settings_and_version(compose: dict[str, Any], engines: ModuleType) -> None:
    timescale = compose["services"]["timescale"]
    program, *options = timescale["command"]

    assert program == "postgres"
    assert dict(option.removeprefix("--").split("=", 1) for option in options) == engines.POSTGRES_SETTINGS
    assert timescale["image"].endswith(f"-pg{engines.POSTGRES_VERSION}")
