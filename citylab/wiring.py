"""Which engine a URL names: the only place that imports adapters, and only inside functions."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar
from urllib.parse import urlsplit

import structlog

from citylab.errors import ConfigurationError, Unavailable
from citylab.model import DAY, Micros, Will
from citylab.ports import BrokerConnection, EntityWrites, EventLog, Store
from citylab.settings import Settings, redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from citylab.adapters.backups import Manifest, Told
    from citylab.adapters.recovery import Reach

log = structlog.get_logger()


class Engine(Protocol):
    """What is opened with `async with`."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *error: object) -> None: ...


E = TypeVar("E", bound=Engine)


@asynccontextmanager
async def opened(engine: E) -> AsyncIterator[E]:
    """Open an engine that may not be there yet: wait with backoff, say so once, go on when it is."""
    said, delay = False, 0.1
    while True:
        try:
            await engine.__aenter__()
            break
        except Unavailable as error:
            if not said:
                log.warning("waiting for an engine; is it running? (citylab doctor)", why=str(error))
            said = True
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5.0)
    if said:
        log.info("the engine is there; going on")
    try:
        yield engine
    finally:
        await engine.__aexit__(*sys.exc_info())


def broker_connection(
    settings: Settings,
    *,
    client_id: str,
    clean_session: bool = True,
    keep_alive: int = 30,
    subscriptions: "Sequence[tuple[str, int]]" = (),
    will: Will | None = None,
) -> BrokerConnection:
    """A connection to the broker that `CITYLAB_BROKER_URL` names. Raises `ConfigurationError`."""
    if settings.broker_url.startswith("embedded:"):
        raise ConfigurationError(
            f"no city is running in {settings.data}, so its embedded broker is not either: start it with `citylab up`,"
            " name another folder with --data, or set CITYLAB_BROKER_URL"
        )
    from citylab.adapters.mqtt import MqttConnection

    return MqttConnection(
        settings.broker_url,
        client_id=client_id,
        clean_session=clean_session,
        keep_alive=keep_alive,
        subscriptions=subscriptions,
        will=will,
    )


def event_log(settings: Settings, *, only_looks: bool = False) -> EventLog:
    """The event log that `CITYLAB_LOG_URL` names. Raises `ConfigurationError`.

    only_looks: for who has perhaps other settings than the services: the retention is not applied when it is opened.
    """
    from citylab.adapters.log_topics import retention

    scheme = settings.log_url.partition(":")[0]
    keep = retention(round(settings.retention_days * DAY), settings.retention_bytes)
    if scheme == "sqlite":
        from citylab.adapters.sqlite_log import SqliteLog

        return SqliteLog(
            log_folder(settings), partitions=settings.partitions, retention=keep, only_looks=only_looks
        )
    if scheme == "kafka":
        from citylab.adapters.kafka_log import KafkaLog

        return KafkaLog(
            settings.log_url, partitions=settings.partitions, retention=keep, only_looks=only_looks
        )
    raise ConfigurationError(
        f"CITYLAB_LOG_URL={redacted(settings.log_url)}: an event log is sqlite:[FOLDER] or kafka://host:port"
    )


def folders(settings: Settings) -> list[Path]:
    """Where this city's engines write on this machine."""
    named = [url.partition(":")[2] for url in (settings.log_url, settings.store_url) if "://" not in url]
    return [settings.data, *(Path(folder) for folder in named if folder)]


async def delete_topics(settings: Settings) -> None:
    """Delete the topics of a log on Kafka, of a city that was made for a while (`citylab bench`). Raises `Unavailable`."""
    from citylab.adapters.kafka_log import delete_topics as delete

    await delete(settings.log_url)


def store(
    settings: Settings, *, name: str, statement_timeout: float = 0, patience: float | None = None
) -> Store:
    """The store that `CITYLAB_STORE_URL` names. Raises `ConfigurationError`.

    In seconds, statement_timeout: 0 for none; patience: that an answer may take until the line counts as dead.
    """
    from citylab.adapters.store import PostgresStore

    return PostgresStore(
        store_url(settings), name=f"citylab-{name}", statement_timeout=statement_timeout, patience=patience
    )


def store_url(settings: Settings) -> str:
    """The store's URL, once it is one to connect to. Raises `ConfigurationError`."""
    if settings.store_url.startswith("embedded:"):
        raise ConfigurationError(
            f"no city is running in {settings.data}, so its embedded store is not either: start it with `citylab up`,"
            " name another folder with --data, or set CITYLAB_STORE_URL"
        )
    if urlsplit(settings.store_url).scheme not in {"postgresql", "postgres"}:
        raise ConfigurationError(
            f"CITYLAB_STORE_URL={redacted(settings.store_url)}: a store is embedded:[FOLDER] or"
            " postgresql://user:password@host:port[,host:port]/database"
        )
    return settings.store_url


def entity_writes() -> EntityWrites:
    """What writes entities into the store."""
    from citylab.adapters import entity_writes as writes

    return writes


async def migrate(settings: Settings) -> "Sequence[str]":
    """Bring the store's schema up to date; return what was applied. Raises `Unavailable`, `ConfigurationError`."""
    from citylab.adapters.migrations import migrate as apply

    return await apply(store_url(settings), grafana_password=grafana_password(settings))


@asynccontextmanager
async def store_server(settings: Settings, *, may_be_new: bool) -> AsyncIterator[str]:
    """The URL of a store that answers: the embedded one of a city that does not run is started for the while.

    may_be_new: whether it is made where there is none. Raises `Unavailable`, `ConfigurationError`.
    """
    if not settings.store_url.startswith("embedded:"):
        yield store_url(settings)
        return
    from citylab.adapters.embedded_postgres import EmbeddedPostgres

    folder = store_folder(settings)
    if not may_be_new and not folder.exists():
        raise ConfigurationError(f"there is no store in {folder}: name the city's folder with --data")
    async with EmbeddedPostgres(folder) as server:
        yield server.url


def store_folder(settings: Settings) -> Path:
    """The embedded store's folder."""
    named = settings.store_url.partition(":")[2]
    return Path(named) if named else settings.data / "store"


async def back_up(url: str, folder: Path, *, version: str, told: "Told") -> "Manifest":
    """Write the store into a folder that is there. See `adapters.backups`."""
    from citylab.adapters.backups import back_up as write

    return await write(url, folder, version=version, told=told)


def check_backup(folder: Path, *, told: "Told") -> "Manifest":
    """Compare a backup with its manifest. See `adapters.backups`."""
    from citylab.adapters.backups import check

    return check(folder, told=told)


async def restore(settings: Settings, url: str, folder: Path, *, force: bool, told: "Told") -> "Manifest":
    """Put a backup that was checked into the store. See `adapters.backups`."""
    from citylab.adapters.backups import restore as read

    password = grafana_password(settings)
    return await read(url, folder, force=force, grafana_password=password, told=told)


async def keep_archive(
    address: "Callable[[], str]", folder: Path, *, version: str, new_base: bool
) -> "NoReturn":
    """Archive the store until cancelled. See `adapters.archives`."""
    from citylab.adapters.archives import keep_archive as keep

    await keep(address, folder, version=version, new_base=new_base)


async def end_archive(url: str, folder: Path) -> None:
    """Have the store keep nothing for an archive any more. See `adapters.archives`."""
    from citylab.adapters.archives import end_archive as end

    await end(url, folder)


def is_archive(folder: Path) -> bool:
    """Whether a folder is an archive of the store, and no backup of its rows. Raises `ConfigurationError`."""
    from citylab.adapters.archives import read_archive

    return read_archive(folder) is not None


def check_archive(folder: Path, until: Micros | None) -> "Reach":
    """Hold an archive against itself. See `adapters.recovery`."""
    from citylab.adapters.recovery import check_archive as check

    return check(folder, until)


def prepare_archived(folder: Path, data: Path, until: Micros | None) -> None:
    """Make a data directory of an archive that was checked. See `adapters.recovery`."""
    from citylab.adapters.recovery import prepare

    prepare(folder, data, until)


async def recover_embedded(
    settings: Settings, folder: Path, reach: "Reach", until: Micros | None, *, force: bool
) -> str:
    """Put an archive that was checked in the place of the embedded store. See `adapters.recovery`."""
    from citylab.adapters.recovery import recover_embedded as recover

    return await recover(folder, store_folder(settings), reach, until, force=force)


def log_folder(settings: Settings) -> Path:
    """The embedded event log's folder. Raises `ConfigurationError` for another log."""
    scheme, _, rest = settings.log_url.partition(":")
    if scheme != "sqlite":
        raise ConfigurationError("--log is for the embedded event log: Kafka's has Kafka's own means")
    return Path(rest) if rest else settings.data / "log"


def copy_log(folder: Path, to: Path) -> None:
    """Copy the embedded event log while it is written. See `adapters.sqlite_segments`."""
    from citylab.adapters.sqlite_segments import copy_log as copy

    copy(folder, to)


async def copy_again(settings: Settings, streams: str) -> float:
    """Seconds that raw binary COPY takes for the rows of streams whose names begin with `streams` (`citylab bench`)."""
    from citylab.adapters.copying import copy_again as copy

    return await copy(store_url(settings), streams)


def grafana_password(settings: Settings) -> str:
    """The password of Grafana's role: the setting, else one that is drawn once and kept in the city's folder (0600)."""
    import secrets

    if settings.grafana_db_password:
        return settings.grafana_db_password
    file = settings.data / "grafana-password"
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        settings.data.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)
        file.write_text(password := secrets.token_urlsafe(24))
        return password
