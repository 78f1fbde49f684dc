"""What the documents show to be typed, and a way to type it: blocks of shell that say whether they are run.

A block of `bash` or `console` has one of these comments before it, which readers do not see:

    <!-- run -->                    run it; it ends with 0, and prints what a console block shows
    <!-- run: until it shows -->    the same, but a command whose output is shown is repeated until it prints that
    <!-- not run: WHY -->
"""

import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0  # s until what a block shows must have appeared
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>(?:not )?run(?:: [^\n]*)?) -->\n)?^```(?P<language>[a-z]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_COMMAND = re.compile(r"^\$ ", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """A command, and what it shows: `...` stands for any text."""

    command: str
    shows: str | None


@dataclass(frozen=True)
class Block:
    """A fenced block of a document. mark: None where it has none."""

    line: int
    language: str
    mark: str | None
    text: str

    @property
    def is_shell(self) -> bool:
        return self.language in {"bash", "console", "sh", "shell"}

    @property
    def is_run(self) -> bool:
        return self.mark is not None and self.mark.startswith("run")

    @property
    def repeats(self) -> bool:
        return self.mark == "run: until it shows"

    def steps(self) -> list[Step]:
        """A console block has several, a bash block is one as a whole."""
        if self.language != "console":
            return [Step(self.text, None)]
        steps = []
        for part in _COMMAND.split(self.text)[1:]:
            command, shows = part.partition("\n")[::2]
            while command.endswith("\\"):
                more, shows = shows.partition("\n")[::2]
                command += f"\n{more}"
            steps.append(Step(command, shows.strip() or None))
        return steps


def blocks_of(document: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, match.start("text")), match["language"], match["mark"], match["text"])
        for match in _BLOCK.finditer(text)
    ]


def matches(shown: str, printed: str) -> bool:
    """Whether a command printed what a document shows, `...` standing for any text."""
    pattern = ".*".join(re.escape(part) for part in shown.split("..."))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


class Reader:
    """Somebody who types a document's blocks one after the other, in one shell as it were."""

    def __init__(self, folder: Path, environment: Mapping[str, str], replaced: Mapping[str, str]) -> None:
        self.folder, self.replaced = folder, replaced
        self.environment = dict(environment)
        self._state = folder / ".shell"  # what the shell before this one exported
        for name in ("docs", "deploy", ".venv"):  # what commands name, as from the checkout
            (folder / name).symlink_to(ROOT / name)

    def type(self, document: Path, block: Block) -> None:
        """Run a block. Fails the test that calls it when the block does not do what it shows."""
        where = f"{document.relative_to(ROOT)}, line {block.line}"
        for step in block.steps():
            deadline = time.monotonic() + PATIENCE
            while True:
                code, output = self._run(step.command)
                if code == 0 and (step.shows is None or matches(step.shows, output)):
                    break
                if not (block.repeats and step.shows) or time.monotonic() > deadline:
                    pytest.fail(
                        f"{where}:\n{step.command}\nended with {code} and printed\n{output}\ninstead of\n{step.shows}",
                        pytrace=False,
                    )
                time.sleep(0.2)

    def _run(self, command: str) -> tuple[int, str]:
        for shown, here in self.replaced.items():
            command = command.replace(shown, here)
        script = f"set -ae\n[ ! -e {self._state} ] || . {self._state}\n{command}\nexport -p > {self._state}\n"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=self.environment, text=True, timeout=120, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout


def clean_environment() -> dict[str, str]:
    """The environment without settings of ours, the project's commands first in the path."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CITYLAB_")}
    return clean | {"PATH": f"{ROOT / '.venv' / 'bin'}:{clean.get('PATH', os.defpath)}", "TERM": "dumb"}
