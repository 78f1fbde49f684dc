"""`/health` and `/metrics`: whether the road flows, from what every service last said of itself in the store."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from citylab import disks
from citylab.archive_watch import Archived, archives
from citylab.errors import Unavailable
from citylab.log_watch import LOST, Finding, findings, look
from citylab.model import SECOND, Kept, Topic
from citylab.ports import EventLog, Store
from citylab.services import PROCESSING_SILENT, together
from citylab.times import now

BRIDGE_SILENT = 15.0  # a bridge reports every five
LAG_UNWELL = 30.0  # s that a pack waits
CLOCKS_APART = 30.0  # s from which on two clocks differ
FEWEST_GATEWAYS = 3  # whose clocks count more than ours
LOOK_EVERY = 2.0  # s between two looks at the event log, however often we are asked
LOOK_WITHIN = 1.0  # s that an answer waits for a look; then it tells what the one before saw

# What was said later than now was said before the store's clock was put back. And by how much a service's own clock is ahead.
_SERVICES = """
SELECT name, state, abs(extract(epoch FROM now() - at))::float8, ((state ->> 'clock')::float8 - extract(epoch FROM at))::float8
FROM services ORDER BY name
"""
_CLOCKS = """
SELECT extract(epoch FROM now())::float8, count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY skew_ms) / 1000
FROM ledger WHERE last_at > now() - interval '10 min' AND skew_ms IS NOT NULL
"""
# A device without an agent never says how it is: it counts as neither.
_GATEWAYS = """
SELECT count(*) FILTER (WHERE status ->> 'state' = 'online'), count(*) FILTER (WHERE status ->> 'state' = 'offline')
FROM gateways
"""
_OFFLINE_THINGS = """
SELECT t.id FROM things t JOIN gateways g ON g.name = t.gateway WHERE g.status ->> 'state' = 'offline'
ORDER BY t.id LIMIT 10000
"""
_LEDGER = """
SELECT gateway, sum(packs)::bigint, sum(duplicate_packs)::bigint, sum(stored)::bigint, sum(duplicates)::bigint,
    sum(rejected)::bigint, sum(numbers_in(missing))::bigint, sum(numbers_in(gone))::bigint
FROM ledger JOIN absent_numbers USING (gateway, epoch) GROUP BY gateway ORDER BY gateway
"""
_OPEN = "SELECT reason, count(*) FROM rejections WHERE closed_at IS NULL GROUP BY reason ORDER BY reason"


class Check(NamedTuple):
    """One thing that must be well, and what to know or do when it is not."""

    name: str
    ok: bool
    detail: str
    warn: bool = False  # well, but not for long


class Health(NamedTuple):
    """How the city is. lag in seconds; online and offline count gateways; offline_things: ids of their Things.

    announcements: messages since processing started; not_announced: observations left out of them; over_quota: packs
    beyond their gateway's quota since the bridges started, by gateway.
    """

    checks: list[Check]
    observations_per_second: float = 0.0
    lag_seconds: float = 0.0
    waiting_events: int = 0
    online: int = 0
    offline: int = 0
    offline_things: tuple[int, ...] = ()
    announcements: int = 0
    not_announced: int = 0
    over_quota: Mapping[str, int] = MappingProxyType({})
    kept: Mapping[Topic, Kept] = MappingProxyType({})
    archived: Sequence[Archived] = ()


class LogWatch:
    """Looks at the event log and the disks when asked, at most every few seconds, and lets nobody wait long for a log that is away."""

    def __init__(self, log: EventLog, store: Store, folders: Sequence[Path] = ()) -> None:
        self._log, self._store, self._folders = log, store, folders
        self._looking: asyncio.Task[None] | None = None
        self._next = float("-inf")
        self._kept: Mapping[Topic, Kept] = {}
        self._away = ""
        self._of_disks: list[Finding] = []

    async def look(self) -> tuple[Mapping[Topic, Kept], list[Check]]:
        """What the topics hold, and what to say of it."""
        if self._looking is None and asyncio.get_running_loop().time() >= self._next:
            self._looking = asyncio.create_task(self._look())
        if self._looking:
            await asyncio.wait([self._looking], timeout=LOOK_WITHIN)
        checks = [Check(disk, not unwell, text, warn=not unwell) for disk, unwell, text in self._of_disks]
        if self._away:
            return {}, [*checks, Check("log", ok=False, detail=self._away)]
        return self._kept, [
            *checks,
            *(
                Check(f"log: {topic}", not unwell, text, warn=not unwell)
                for topic, unwell, text in findings(self._kept)
            ),
        ]

    async def _look(self) -> None:
        try:
            self._of_disks = await asyncio.to_thread(disks.findings, self._folders)
            self._kept, self._away = await look(self._log, self._store, now=now()), ""
        except Unavailable as error:
            self._kept, self._away = {}, "" if error.engine == "store" else str(error)
        finally:
            self._looking = None
            self._next = asyncio.get_running_loop().time() + LOOK_EVERY


async def health(store: Store, watch: LogWatch, *, is_open: bool) -> Health:
    """Look at the store, at what the services last wrote there, and at the log. Raises `Unavailable`."""
    kept, of_log = await watch.look()
    async with store.transaction(read_only=True) as transaction:
        services = await transaction.fetch(_SERVICES)
        ((store_clock, gateways, skew),) = await transaction.fetch(_CLOCKS)
        ((online, offline),) = await transaction.fetch(_GATEWAYS)
        offline_things = (
            tuple(thing for (thing,) in await transaction.fetch(_OFFLINE_THINGS)) if offline else ()
        )
        archived = await archives(transaction)
    checks = [Check("store", ok=True, detail="answers"), *of_log]
    checks += [Check(f"archive {one.name}", not one.unwell, one.text, one.warn) for one in archived]
    ahead = {"this API": now() / SECOND - store_clock}
    ahead |= {name: by for name, _, age, by in services if by is not None and age < BRIDGE_SILENT}
    checks += _clocks(ahead, gateways, skew)
    processing = {name: (state, age) for name, state, age, _ in services if name.startswith("processing")}
    figures = together({name: state for name, (state, _) in processing.items()})
    if figures:
        checks += _processing(figures, {name: age for name, (_, age) in processing.items()})
    bridges, over_quota = 0, Counter[str]()
    for name, state, age, _ in services:
        if name in processing:
            continue
        if name == LOST:
            checks += [
                Check(
                    f"unread in {place}",
                    ok=False,
                    detail=f"{why}; `citylab positions acknowledge` takes note",
                )
                for place, why in state.items()
            ]
        elif age < 3_600:  # a bridge that was taken away for good is forgotten after an hour
            bridges += 1
            over_quota.update(state.get("over_quota_by_gateway") or {})
            well = age < BRIDGE_SILENT and bool(state.get("connected"))
            silent = f"silent for {age:.0f} s" if age >= BRIDGE_SILENT else "not connected to the broker"
            if state.get("lost"):
                checks.append(
                    Check(
                        f"{name}: unpublished", ok=False, detail=f"{state['lost']}; said until it starts anew"
                    )
                )
            checks.append(
                Check(name, well, f"{state.get('packs_per_second', 0)} packs/s" if well else silent)
            )
    if not figures:
        checks.append(
            Check("processing", ok=False, detail="has never reported: is `citylab processing` running?")
        )
    if not bridges:
        checks.append(
            Check("ingest", ok=False, detail="no bridge has reported: is `citylab ingest` running?")
        )
    if is_open:
        checks.append(
            Check(
                "access",
                ok=True,
                detail="open to the network, and nothing asks for credentials (CITYLAB_OPEN)",
            )
        )
    return Health(
        checks,
        float(figures.get("observations_per_second", 0.0)),
        float(figures.get("lag_seconds", 0.0)),
        int(figures.get("waiting_events", 0)),
        online,
        offline,
        offline_things,
        int(figures.get("announcements", 0)),
        int(figures.get("not_announced", 0)),
        over_quota,
        kept,
        archived,
    )


def _clocks(ahead: Mapping[str, float], gateways: int, skew: float | None) -> list[Check]:
    """ahead: of the store's clock, in s, by service; skew: the age of gateways' newest reading at its receipt, its median."""
    todo = "set it right, then `citylab rejections replay --reason time-in-future`"
    checks = [
        Check(
            f"clock of {name}",
            ok=False,
            detail=f"{abs(by):,.0f} s {'ahead of' if by > 0 else 'behind'} the store's: {todo}",
        )
        for name, by in ahead.items()
        if abs(by) >= CLOCKS_APART
    ]
    if skew is not None and skew <= -CLOCKS_APART and gateways >= FEWEST_GATEWAYS:
        who = f"behind those of half of the {gateways} gateways that sent lately"
        checks.append(Check("clock", ok=False, detail=f"{-skew:,.0f} s {who}: {todo}"))
    return checks


def _processing(figures: dict[str, Any], ages: dict[str, float]) -> list[Check]:
    checks = [
        Check(name, ok=False, detail=f"silent for {age:.0f} s: is `citylab processing` running?")
        for name, age in ages.items()
        if age >= PROCESSING_SILENT
    ]
    if len(checks) == len(ages):
        return checks
    checks += [
        Check(f"processing: {name}", ok=False, detail=why) for name, why in figures["problems"].items()
    ]
    if len(ages) > 1:
        checks.append(Check("workers", ok=True, detail=f"{len(ages)} share the packs"))
    lag = float(figures["lag_seconds"])
    late = f"{figures['waiting_events']} packs wait, the last stored one came {lag:.0f} s ago"
    checks.append(Check("lag", lag < LAG_UNWELL, late if lag >= 1 else "nothing waits"))
    return checks


class _Figures(Collector):
    """What is exposed to Prometheus, made anew at each scrape."""

    def __init__(
        self, found: Health, ledger: list[tuple[Any, ...]], open_rejections: list[tuple[str, int]]
    ) -> None:
        self.found, self.ledger, self.open_rejections = found, ledger, open_rejections

    def collect(self) -> list[Metric]:
        found = self.found
        ready = GaugeMetricFamily(
            "citylab_check_ok", "1 when a check of /health/ready is well", labels=["check"]
        )
        for check in found.checks:
            ready.add_metric([check.name], float(check.ok))
        gateways = GaugeMetricFamily("citylab_gateways", "Gateways by what they last said", labels=["state"])
        gateways.add_metric(["online"], found.online)
        gateways.add_metric(["offline"], found.offline)
        families: list[Metric] = [
            ready,
            gateways,
            GaugeMetricFamily(
                "citylab_observations_per_second", "Newly stored", value=found.observations_per_second
            ),
            GaugeMetricFamily(
                "citylab_lag_seconds",
                "Age of the newest stored pack while packs wait",
                value=found.lag_seconds,
            ),
            GaugeMetricFamily(
                "citylab_waiting_packs",
                "Packs in the event log that are not stored yet",
                value=found.waiting_events,
            ),
        ]
        families += [
            CounterMetricFamily(
                "citylab_announcements", "Messages that told of entities over MQTT", value=found.announcements
            ),
            CounterMetricFamily(
                "citylab_not_announced",
                "Observations that gave way to a newer one of their Datastream, and messages too large for a broker",
                value=found.not_announced,
            ),
        ]
        columns = (
            ("citylab_packs", "Packs received, without duplicates"),
            ("citylab_duplicate_packs", "Packs that came again"),
            ("citylab_observations_stored", "Records that became observations"),
            ("citylab_records_duplicate", "Records that were stored already"),
            ("citylab_records_rejected", "Records that were rejected"),
        )
        for i, (name, about) in enumerate(columns, start=1):
            family = CounterMetricFamily(name, about, labels=["gateway"])
            for row in self.ledger:
                family.add_metric([row[0]], row[i])
            families.append(family)
        behind = GaugeMetricFamily(
            "citylab_archive_behind_bytes", "WAL of the store that an archive has not yet", labels=["archive"]
        )
        for one in found.archived:
            behind.add_metric([one.name], one.behind)
        families += [behind, *_of_log(found.kept)]
        absent = (
            ("citylab_packs_missing", "Packs that have not come, and their gateway has not got any more"),
            ("citylab_packs_gone", "Packs that a gateway had to drop, its outbox being full"),
        )
        for i, (name, about) in enumerate(absent, start=6):
            numbers = GaugeMetricFamily(name, about, labels=["gateway"])
            for row in self.ledger:
                numbers.add_metric([row[0]], row[i])
            families.append(numbers)
        over_quota = CounterMetricFamily(
            "citylab_packs_over_quota",
            "Packs beyond the gateway's quota, of the noisiest",
            labels=["gateway"],
        )
        for gateway, packs in sorted(found.over_quota.items()):
            over_quota.add_metric([gateway], packs)
        still_open = GaugeMetricFamily(
            "citylab_rejections_open", "Kept rejections that were not taken up", labels=["reason"]
        )
        for reason, count in self.open_rejections:
            still_open.add_metric([reason], count)
        return [*families, over_quota, still_open]


def _of_log(kept: Mapping[Topic, Kept]) -> list[Metric]:
    size = GaugeMetricFamily("citylab_log_bytes", "What the event log has on disk", labels=["topic"])
    oldest = GaugeMetricFamily(
        "citylab_log_oldest_seconds", "Age of the log's oldest event", labels=["topic"]
    )
    behind = GaugeMetricFamily(
        "citylab_log_behind_ratio",
        "Share of the log's retention that is unread: at 1 the oldest of it goes",
        labels=["topic"],
    )
    lost = GaugeMetricFamily(
        "citylab_log_lost_events",
        "Events that the retention removed unread, while that is not settled",
        labels=["topic"],
    )
    for topic, found in kept.items():
        size.add_metric([topic], found.bytes)
        if found.oldest is not None:
            oldest.add_metric([topic], max(now() - found.oldest, 0) / SECOND)
        behind.add_metric([topic], found.behind)
        lost.add_metric([topic], found.lost)
    return [size, oldest, behind, lost]


def health_router(
    store: Store, log: EventLog, *, broker: str = "", is_open: bool = False, folders: Sequence[Path] = ()
) -> APIRouter:
    """The routes. broker: where gateways publish, without its password, for the page to tell; folders: whose disks need room.

    `/health/ready` answers 200 while the API can serve, and says in `state` whether all is well.
    """
    router = APIRouter(tags=["operations"])
    watch = LogWatch(log, store, folders)

    @router.get("/health/live", summary="Whether this process answers")
    async def live() -> dict[str, str]:
        return {"state": "live"}

    @router.get("/health/ready", summary="Whether the API can serve, and whether all is well on the road")
    async def ready() -> Response:
        try:
            found = await health(store, watch, is_open=is_open)
        except Unavailable as error:
            _, of_log = await watch.look()
            found, status = Health([Check("store", ok=False, detail=str(error)), *of_log]), 503
        else:
            status = 200
        body = {
            "state": "ready" if all(check.ok for check in found.checks) else "unwell",
            "checks": [check._asdict() for check in found.checks],
            "observations_per_second": found.observations_per_second,
            "lag_seconds": found.lag_seconds,
            "waiting_events": found.waiting_events,
            "broker": broker,
            "gateways": {
                "online": found.online,
                "offline": found.offline,
                "offline_things": found.offline_things,
                "over_quota": dict(found.over_quota),
            },
        }
        return Response(msgspec.json.encode(body), status, media_type="application/json")

    @router.get("/metrics", summary="Figures in the Prometheus text format")
    async def metrics() -> Response:
        try:
            found = await health(store, watch, is_open=is_open)
            async with store.transaction(read_only=True) as transaction:
                ledger = await transaction.fetch(_LEDGER)
                rejections = [(reason, count) for reason, count in await transaction.fetch(_OPEN)]
        except Unavailable as error:
            _, of_log = await watch.look()
            found, ledger, rejections = Health([Check("store", ok=False, detail=str(error)), *of_log]), [], []
        registry = CollectorRegistry()
        registry.register(_Figures(found, ledger, rejections))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
