"""Logging: structured and quiet, one line a unit of work; for people on a terminal, as JSON elsewhere."""

import errno
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

import structlog


@contextmanager
def whether_or_not_there_is_room() -> Iterator[None]:
    """What is said on a full disk is lost, and stops nobody."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise


class _Lines:
    """Where lines go that a full disk may lose."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with whether_or_not_there_is_room():
            self._file.write(text)

    def flush(self) -> None:
        with whether_or_not_there_is_room():
            self._file.flush()


def start_logging(level: str, *, service: str) -> None:
    """Send all logs to standard error. Called once, by an entry point."""
    people = sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if people else "iso", utc=not people),
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Lines(sys.stderr))),
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")
