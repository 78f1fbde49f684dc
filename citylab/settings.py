"""Settings: environment over `.env` over a running city's addresses over defaults, loaded once in an entry point."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints
from urllib.parse import urlsplit, urlunsplit

import msgspec
from dotenv import dotenv_values

from citylab.errors import ConfigurationError
from citylab.times import parse_instant

PREFIX = "CITYLAB_"
# Read by the tests and by the compose file, not by Citylab itself; known, so that nobody is told they are mistyped.
FOREIGN = ("CITYLAB_REQUIRE_ENGINES", "CITYLAB_DB_PASSWORD")
FOREIGN_PREFIXES = ("CITYLAB_TEST_",)
CITY_FILE = "city.json"
_PASSWORD = re.compile(r"(password=)[^&]*", re.IGNORECASE)  # libpq takes those of user and key in a query too
ADDRESSES = (  # in it, with what would let a command that knows better keep less of the log
    "broker_url", "embedded_broker", "log_url", "store_url", "http_port", "retention_days", "retention_bytes",
)  # fmt: skip


def _about(text: str) -> Any:
    return msgspec.Meta(description=text)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set. Each field is the environment variable `CITYLAB_` + its name in capitals."""

    data: Annotated[Path, _about("The city's folder; as root the default is /var/lib/citylab.")] = Path(
        ".citylab"
    )
    broker_url: Annotated[
        str,
        _about(
            "`embedded:` or mqtt://[user:password@]host:port, mqtts://...[?ca=FILE]. Set it to use a broker of yours."
        ),
    ] = "embedded:"
    log_url: Annotated[
        str,
        _about("The event log: `sqlite:[FOLDER]` or kafka://host:port[,host:port][/prefix of the topics]."),
    ] = "sqlite:"
    store_url: Annotated[
        str,
        _about(
            "`embedded:[FOLDER]` or postgresql://user:password@host:port[,host:port]/database, with TimescaleDB or without."
            " Of several hosts the one that takes writes is used."
        ),
    ] = "embedded:"
    archive: Annotated[
        str,
        _about(
            "A folder in which `citylab up` keeps a continuous backup of the store, best on another disk; else there is none."
        ),
    ] = ""
    http_host: Annotated[
        str,
        _about(
            "The address that the API listens on. Other than loopback it needs CITYLAB_OPEN=1: there are no credentials."
        ),
    ] = "127.0.0.1"
    http_port: Annotated[int, _about("The API's port."), msgspec.Meta(ge=0, le=65535)] = 8000
    mqtt_port: Annotated[
        int,
        _about("The embedded broker's port for MQTT 3.1.1; 0 takes a free one."),
        msgspec.Meta(ge=0, le=65535),
    ] = 1883
    open: Annotated[
        bool, _about("1 allows addresses other than loopback while nothing asks for credentials.")
    ] = False
    public_url: Annotated[
        str,
        _about(
            "What absolute links begin with, where a proxy stands in front; else the request's own address."
        ),
    ] = ""
    page_limit: Annotated[
        int, _about("Entities in a page of the API when $top does not say."), msgspec.Meta(ge=1, le=10_000)
    ] = 100
    tasking: Annotated[
        bool,
        _about(
            "0 leaves Part 2 of SensorThings, Tasking, out of the API, for clients that know Part 1 alone."
        ),
    ] = True
    command_seconds: Annotated[
        int,
        _about("How long a Task's command waits for its gateway to answer before the Task is expired."),
        msgspec.Meta(ge=1, le=31_536_000),
    ] = 3_600
    bridge_name: Annotated[
        str, _about("Names the bridge's persistent MQTT session; every bridge has its own, never used twice."),
        msgspec.Meta(pattern=r"^[A-Za-z0-9_.\-]{1,32}$"),
    ] = "1"  # fmt: skip
    embedded_broker: Annotated[
        bool,
        _about(
            "Whether the broker is the embedded one; `citylab up` sets it. Of several bridges, the one named 1 then takes"
            " unnumbered packs and SensorThings creates alone."
        ),
    ] = False
    partitions: Annotated[
        int, _about("Partitions of the packs when the event log is made; more let more processors share the work."),
        msgspec.Meta(ge=1, le=1_000),
    ] = 4  # fmt: skip
    workers: Annotated[
        int, _about("Processes that `citylab processing` starts, which share the partitions of the packs."),
        msgspec.Meta(ge=1, le=64),
    ] = 1  # fmt: skip
    retention_days: Annotated[
        float,
        _about(
            "How long the event log keeps packs, and whatever else waits to be stored or published, in days."
        ),
        msgspec.Meta(gt=0, le=3_650),
    ] = 7.0
    retention_bytes: Annotated[
        int,
        _about(
            "What the event log's packs may take on disk, in bytes of one copy; the other topics together take half as much"
            " at most. Beyond it the oldest go, read or not."
        ),
        msgspec.Meta(ge=1 << 20, le=1 << 50),
    ] = 8 << 30
    pack_bytes: Annotated[int, _about("Largest pack, in bytes."), msgspec.Meta(ge=1_024, le=8 << 20)] = (
        256 * 1024
    )
    pack_records: Annotated[int, _about("Most records in a pack."), msgspec.Meta(ge=1, le=100_000)] = 5_000
    quota_bytes: Annotated[
        int,
        _about(
            "Bytes of packs a second that a bridge takes of each gateway, a pack counting 256 more than it has. What is beyond"
            " comes later, or is rejected where it has no number. 0 sets no limit."
        ),
        msgspec.Meta(ge=0),
    ] = 4 << 20
    quota_seconds: Annotated[
        float,
        _about("How many seconds' worth of its quota a gateway may send at once after a pause."),
        msgspec.Meta(gt=0, le=3_600),
    ] = 10.0
    future_seconds: Annotated[
        int,
        _about("How far ahead of its receipt a record's time may be before it is rejected."),
        msgspec.Meta(ge=0),
    ] = 3_600
    earliest: Annotated[str, _about("Records before this instant are rejected as implausible.")] = (
        "2000-01-01T00:00:00Z"
    )
    move_metres: Annotated[
        float,
        _about("How far a position has to be from its Thing's Location before it makes another, in metres."),
        msgspec.Meta(ge=0),
    ] = 10.0
    statement_seconds: Annotated[
        float, _about("How long a query of the API may take, in seconds."), msgspec.Meta(gt=0, le=3_600)
    ] = 30.0
    announcements_per_second: Annotated[
        int,
        _about(
            "Messages a second in which a processing service tells of new and changed entities under the MQTT topics v1.1/...;"
            " beyond it only the newest Observation of each Datastream is told. 0 tells nothing."
        ),
        msgspec.Meta(ge=0, le=100_000),
    ] = 500
    mqtt_endpoints: Annotated[
        str,
        _about(
            "Addresses at which clients reach the MQTT broker, such as mqtts://city.example:8883, separated by commas; else the"
            " address that Citylab uses, without its user."
        ),
    ] = ""
    grafana_url: Annotated[str, _about("Grafana's address, as http://[user:password@]host:port.")] = ""
    grafana_token: Annotated[
        str, _about("A token of a Grafana service account, instead of user and password.")
    ] = ""
    grafana_store_url: Annotated[
        str,
        _about("How Grafana reaches the store, as host:port/database; else the address that Citylab uses."),
    ] = ""
    grafana_db_password: Annotated[
        str,
        _about("The password of the role citylab_grafana; else one is drawn and kept in the city's folder."),
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _about("Which log lines are written: these and worse.")
    ] = "info"

    @classmethod
    def load(
        cls,
        environment: Mapping[str, str] | None = None,
        *,
        data: Path | None = None,
        of_running_city: bool = True,
    ) -> Self:
        """Resolve the settings. `data` is the command line's `--data`, which comes before all else.

        of_running_city: whether to find a running city's engines through its folder. Who starts engines does not: after
        a kill -9 the addresses of engines that are gone are still there.
        Raises `ConfigurationError` for an unknown variable, which names the nearest known one, and for a wrong value.
        """
        given = dict(os.environ if environment is None else environment)
        file = (
            {k: v for k, v in dotenv_values(".env").items() if v is not None} if environment is None else {}
        )
        merged = {name: value for name, value in (file | given).items() if name.startswith(PREFIX)}
        _refuse_unknown(merged)
        values: dict[str, Any] = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in merged.items()
            if value and name not in FOREIGN and not name.startswith(FOREIGN_PREFIXES)
        }
        default = (
            Path("/var/lib/citylab") if hasattr(os, "geteuid") and os.geteuid() == 0 else Path(".citylab")
        )
        values["data"] = Path(data or values.get("data") or default).absolute()
        if of_running_city:
            values = _of_running_city(values["data"]) | values
        hints = get_type_hints(cls, include_extras=True)
        for name, value in values.items():
            if name == "data":
                continue
            try:
                values[name] = msgspec.convert(value, hints[name], strict=False)
            except msgspec.ValidationError as error:
                shown = "***" if is_secret(name) else repr(value)
                raise ConfigurationError(f"{PREFIX}{name.upper()}={shown}: {error}") from None
        settings = cls(**values)
        try:
            parse_instant(settings.earliest)
        except ValueError as error:
            raise ConfigurationError(f"{PREFIX}EARLIEST: {error}") from None
        return settings

    def replaced(self, **changes: Any) -> Self:
        """The same settings but for these."""
        return msgspec.structs.replace(self, **changes)

    def environment(self) -> dict[str, str]:
        """The settings as variables, for a child process; it contains the secrets."""
        found = {}
        for name in self.__struct_fields__:
            value = getattr(self, name)
            found[PREFIX + name.upper()] = ("1" if value else "0") if isinstance(value, bool) else str(value)
        return found

    def shown(self) -> dict[str, str]:
        """The settings for people: without their secrets."""
        return {
            name: "***" if is_secret(name) and value else redacted(value)
            for name, value in self.environment().items()
        }

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.shown().items())})"


def _refuse_unknown(variables: Mapping[str, str]) -> None:
    known = [PREFIX + name.upper() for name in Settings.__struct_fields__]
    for name in sorted(variables):
        if name in known or name in FOREIGN or name.startswith(FOREIGN_PREFIXES):
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ConfigurationError(f"{name} is no setting of Citylab; did you mean {near[0]}?")


def _of_running_city(data: Path) -> dict[str, Any]:
    """The addresses that a running `citylab up` has written into the city's folder."""
    try:
        addresses = msgspec.json.decode((data / CITY_FILE).read_bytes(), type=dict[str, Any])
    except OSError:
        return {}
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"{data / CITY_FILE} is damaged ({error}): stop the city and delete it"
        ) from error
    return {name: addresses[name] for name in ADDRESSES if name in addresses}


def endpoints(settings: Settings) -> list[str]:
    """Where clients reach the MQTT broker."""
    if settings.mqtt_endpoints:
        return [address.strip() for address in settings.mqtt_endpoints.split(",") if address.strip()]
    parts = urlsplit(settings.broker_url)
    return [f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"] if parts.netloc else []


def service_url(settings: Settings) -> str:
    """The address that the API's links begin with for whom we cannot ask how they reach it."""
    host = "127.0.0.1" if settings.http_host in {"0.0.0.0", "::"} else settings.http_host  # noqa: S104 -- compared
    address = f"http://[{host}]" if ":" in host else f"http://{host}"
    return settings.public_url.rstrip("/") or f"{address}:{settings.http_port}"


def is_secret(name: str) -> bool:
    """Whether a setting is a secret as a whole."""
    return name.lower().endswith(("password", "token"))


def redacted(text: str) -> str:
    """A URL without its passwords; any other text as it is."""
    if "://" not in text:
        return text
    parts = urlsplit(text)
    parts = parts._replace(query=_PASSWORD.sub(r"\1***", parts.query))
    if "@" not in parts.netloc:
        return urlunsplit(parts)
    host = parts.netloc.rpartition("@")[2]
    user = (parts.username or "") + ":***@" if parts.password else (parts.username or "") + "@"
    return urlunsplit(parts._replace(netloc=user + host))
