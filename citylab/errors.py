"""What can go wrong, named by what the caller does next."""


class CitylabError(Exception):
    """What every error of ours is.

    CitylabError
    ├── ConfigurationError   stop; the message names the setting and what would be right
    ├── Unavailable          try again after `retry_after` seconds
    │   └── TimedOut         or ask for less at once
    ├── PositionLost         stop this partition and say so in /health
    └── Rejected             never try again; `reason` is one of the contracts' table
    """


class ConfigurationError(CitylabError):
    """A setting or a command's argument is wrong; nothing was started."""


class Unavailable(CitylabError):
    """An engine does not answer now. `engine` is a person's word for it, such as "event log"."""

    def __init__(self, engine: str, why: str, *, retry_after: float = 1.0) -> None:
        super().__init__(f"the {engine} does not answer: {why}")
        self.engine = engine
        self.retry_after = retry_after


class TimedOut(Unavailable):
    """An engine stopped at its time-out what it was asked for; the same again may well take as long."""


class PositionLost(CitylabError):
    """A position lies outside the log, or the event before it is not the one that was read: another log."""

    def __init__(self, topic: str, partition: int, why: str) -> None:
        super().__init__(f"{topic}/{partition}: {why}")
        self.topic = topic
        self.partition = partition


class Rejected(CitylabError):
    """Input that will never be accepted. `reason` is a word of the contracts' table of reasons."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
