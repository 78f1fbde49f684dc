import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner

from citylab import cli
from citylab.errors import ConfigurationError, PositionLost, Unavailable
from citylab.settings import Settings


def citylab(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CITYLAB_")}
    return subprocess.run(
        [sys.executable, "-m", "citylab", *arguments],
        env=clean | {"COLUMNS": "200", "TERM": "dumb"} | variables,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def code_of(tmp_path, monkeypatch) -> Callable[..., int]:
    """The exit code of a command that does this work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "start_logging", lambda *_, **__: None)

    def _code_of(work, **options) -> int:
        with pytest.raises(typer.Exit) as ended:
            cli.run("test", work, data=tmp_path, **options)
        return ended.value.exit_code

    return _code_of


def test_help_lists_every_command_with_a_line_on_it():
    shown = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"})

    assert shown.exit_code == 0
    for name, command in cli.COMMANDS.items():
        assert name in shown.output
        assert command.about in shown.output


def test_without_arguments_it_shows_what_there_is():
    shown = citylab()

    assert "citylab [OPTIONS] COMMAND" in shown.stdout + shown.stderr
    assert "replay" in shown.stdout + shown.stderr


def test_every_command_has_help_of_its_own():
    import importlib

    for name, command in cli.COMMANDS.items():
        app = importlib.import_module(command.module).app
        shown = CliRunner().invoke(app, ["--help"])
        assert shown.exit_code == 0, name


def test_help_of_a_command_is_reached_through_the_command_line():
    shown = citylab("edge", "--help")

    assert shown.returncode == 0
    assert "citylab edge" in shown.stdout
    assert "--descriptor" in shown.stdout


def test_an_unknown_command_is_a_usage_error_that_names_it():
    shown = citylab("replya")

    assert shown.returncode == 2
    assert "replya" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_an_unknown_option_of_a_command_is_a_usage_error():
    shown = citylab("doctor", "--daat", "x")

    assert shown.returncode == 2
    assert "--daat" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_mistyped_variable_is_a_usage_error_in_a_sentence(tmp_path):
    shown = citylab("doctor", "--data", str(tmp_path), CITYLAB_STORE_ULR="x")

    assert shown.returncode == 2
    assert shown.stderr.strip() == (
        "citylab doctor: CITYLAB_STORE_ULR is no setting of Citylab; did you mean CITYLAB_STORE_URL?"
    )


def test_a_command_that_needs_a_city_says_where_it_looked(tmp_path):
    shown = citylab("migrate", "--data", str(tmp_path))

    assert shown.returncode == 2
    assert f"no city is running in {tmp_path}" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_done_is_0(code_of):
    async def work(_: Settings) -> None:
        return None

    assert code_of(work) == 0


def test_a_command_may_say_that_it_failed(code_of):
    async def work(_: Settings) -> int:
        return 1

    assert code_of(work) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("wrong"), 2),
        (Unavailable("store", "gone"), 1),
        (PositionLost("topic", 0, "gone"), 1),
    ],
)
def test_errors_of_ours_are_a_sentence_and_a_code(code_of, capsys, error, code):
    async def work(_: Settings) -> None:
        raise error

    assert code_of(work) == code
    assert capsys.readouterr().err == f"citylab test: {error}\n"


def test_the_first_error_of_a_task_group_is_the_sentence(code_of, capsys):
    async def fail() -> None:
        raise ConfigurationError("wrong")

    async def work(_: Settings) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())

    assert code_of(work) == 2
    assert capsys.readouterr().err == "citylab test: wrong\n"


def test_a_defect_keeps_its_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "start_logging", lambda *_, **__: None)

    async def work(_: Settings) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run("test", work, data=tmp_path)


def test_a_signal_ends_a_command_with_0_after_it_has_put_everything_away(code_of):
    put_away = []

    async def work(_: Settings) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            put_away.append(True)

    assert code_of(work) == 0
    assert put_away


def test_what_the_command_line_gives_comes_before_the_environment(code_of, monkeypatch):
    monkeypatch.setenv("CITYLAB_HTTP_PORT", "8300")
    seen: list[int] = []

    async def work(settings: Settings) -> None:
        seen.append(settings.http_port)

    code_of(work, http_port=None)
    code_of(work, http_port=8400)

    assert seen == [8300, 8400]
