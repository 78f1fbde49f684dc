"""The dashboard "City overview": what the city measures now, what is unwell, and what is missing."""

from dashboards.panels import Colour, Dashboard, Field, Kind, Panel, Place, Variable

_STATES = {
    "well": "green",
    "suspect": "orange",
    "bad": "red",
    "silent": "red",
    "never heard": "orange",
    "retired": "text",
}
_GOOD_IS_NONE = (Colour(None, "green"), Colour(1, "orange"))

_DATASTREAM = Variable(
    "datastream",
    "Datastream",
    """\
SELECT datastream || coalesce(' (' || nullif(unit, '') || ')', '') AS __text, id AS __value
FROM grafana.datastreams
ORDER BY active DESC, datastream, id""",
)
_A_MINUTE = Panel(
    title="Observations a minute",
    description="Of the last whole minute. Streams slower than a minute count when their values come.",
    kind=Kind.STAT,
    place=Place(0, 0, 5, 4),
    colours=(Colour(None, "blue"),),
    sql="""\
SELECT coalesce(sum(count), 0) AS observations
FROM grafana.throughput
WHERE time >= date_trunc('minute', now()) - interval '1 minute' AND time < date_trunc('minute', now())""",
)
_WELL = Panel(
    title="Datastreams that are well",
    description="Heard within three of their intervals and a minute, and not marked as suspect or bad.",
    kind=Kind.STAT,
    place=Place(5, 0, 5, 4),
    colours=(Colour(None, "green"),),
    sql="SELECT count(*) FILTER (WHERE state = 'well') AS well FROM grafana.latest",
)
_UNWELL_COUNT = Panel(
    title="Unwell",
    description="Datastreams that are silent, never heard, suspect or bad.",
    kind=Kind.STAT,
    place=Place(10, 0, 5, 4),
    colours=_GOOD_IS_NONE,
    sql="SELECT count(*) FILTER (WHERE state NOT IN ('well', 'retired')) AS unwell FROM grafana.latest",
)
_MISSING = Panel(
    title="Packs missing",
    description="Numbers below the highest received that have not arrived and that no gateway still holds.",
    kind=Kind.STAT,
    place=Place(15, 0, 5, 4),
    colours=_GOOD_IS_NONE,
    sql="SELECT coalesce(sum(missing), 0) AS missing FROM grafana.ledger",
)
_REFUSED = Panel(
    title="Records rejected",
    description="By reason below; each one with its reason is in grafana.rejections.",
    kind=Kind.STAT,
    place=Place(20, 0, 4, 4),
    colours=_GOOD_IS_NONE,
    sql="SELECT coalesce(sum(records), 0) AS rejected FROM grafana.rejected",
)
_CHART = Panel(
    title="${datastream:text}",
    description="Mean, least and greatest of each group of values; what is marked as bad is left out.",
    # A city without datastreams leaves the variable empty, hence nullif.
    kind=Kind.TIME_SERIES,
    place=Place(0, 4, 16, 9),
    least_interval="1s",
    sql="""\
SELECT $__timeGroupAlias(time, $__interval), avg(value) AS mean, min(value) AS least, max(value) AS greatest
FROM grafana.observations
WHERE datastream_id = nullif('$datastream', '')::bigint AND $__timeFilter(time) AND flag IS DISTINCT FROM 'bad'
GROUP BY 1
ORDER BY 1""",
)
_UNWELL = Panel(
    title="What is unwell",
    description="Silent: no value for three intervals and a minute (an hour where no interval is declared).",
    kind=Kind.TABLE,
    place=Place(16, 4, 8, 9),
    fields=(Field("age", unit="dtdurations", width=110), Field("state", width=90, words=_STATES)),
    sql="""\
SELECT state, thing, datastream, age_seconds AS age
FROM grafana.latest
WHERE state NOT IN ('well', 'retired')
ORDER BY state, age_seconds DESC NULLS FIRST, thing, datastream
LIMIT 500""",
)
_NEWEST = Panel(
    title="Newest values",
    description="The newest observation of each datastream.",
    kind=Kind.TABLE,
    place=Place(0, 13, 16, 11),
    fields=(
        Field("state", width=90, words=_STATES),
        Field("unit", width=80),
        Field("value", width=110),
        Field("age", unit="dtdurations", width=110),
    ),
    sql="""\
SELECT state, thing, datastream, coalesce(value::text, text) AS value, unit, time, age_seconds AS age
FROM grafana.latest
ORDER BY thing, datastream
LIMIT 5000""",
)
_PER_MINUTE = Panel(
    title="Observations per minute",
    description="Of the whole city, by the time at which they were observed. Numbers only.",
    kind=Kind.TIME_SERIES,
    place=Place(16, 13, 8, 11),
    least=0,
    least_interval="1m",
    sql="""\
SELECT $__timeGroupAlias(time, $__interval), sum(count) * 60000.0 / $__interval_ms AS observations
FROM grafana.throughput
WHERE $__timeFilter(time)
GROUP BY 1
ORDER BY 1""",
)
_COMPLETENESS = Panel(
    title="Completeness",
    description="Received of expected, in hours: the twelve least complete things whose streams declare an interval.",
    kind=Kind.TIME_SERIES,
    place=Place(0, 24, 12, 9),
    unit="percentunit",
    least=0,
    greatest=1,
    least_interval="1h",
    sql="""\
SELECT h.time, h.thing AS metric, h.completeness
FROM (
    SELECT s.*, dense_rank() OVER (ORDER BY s.overall, s.thing_id) AS place
    FROM (
        SELECT $__timeGroupAlias(a.time, '1h'), d.thing_id, d.thing,
            sum(least(a.count, a.expected)) / sum(a.expected) AS completeness,
            sum(sum(least(a.count, a.expected))) OVER (PARTITION BY d.thing_id)
                / sum(sum(a.expected)) OVER (PARTITION BY d.thing_id) AS overall
        FROM grafana.aggregates a
        JOIN grafana.datastreams d ON d.id = a.datastream_id
        WHERE a.width = 3600 AND $__timeFilter(a.time) AND a.expected IS NOT NULL
        GROUP BY 1, d.thing_id, d.thing
    ) s
) h
WHERE h.place <= 12
ORDER BY h.time, h.place""",
)
_REASONS = Panel(
    title="Rejected, by reason",
    description="Records that will never be accepted, over all time.",
    kind=Kind.BARS,
    place=Place(12, 24, 12, 9),
    sql="SELECT reason, sum(records) AS records FROM grafana.rejected GROUP BY reason ORDER BY records DESC, reason",
)
_LEDGER = Panel(
    title="Ingest ledger",
    description="Per gateway, and epoch of its outbox: packs received, missing, waiting at the gateway, lost there; "
    "records stored, duplicate and rejected. Epoch 0 counts packs without numbers.",
    kind=Kind.TABLE,
    place=Place(0, 33, 24, 10),
    sql="""\
SELECT l.gateway, g.state, l.epoch::text AS epoch, l.received, l.missing, l.waiting, l.lost, l.duplicate_packs,
    l.records, l.stored, l.duplicates, l.rejected,
    (SELECT string_agg(r.reason || ' ' || r.records, ', ' ORDER BY r.records DESC, r.reason)
     FROM grafana.rejected r WHERE r.gateway = l.gateway AND r.epoch = l.epoch) AS reasons,
    l.skew_ms, l.last_at
FROM grafana.ledger l
LEFT JOIN grafana.gateways g ON g.gateway = l.gateway
ORDER BY l.gateway, l.last_at DESC
LIMIT 5000""",
    fields=(
        Field("state", width=90, words={"online": "green", "offline": "red"}),
        Field("skew_ms", unit="ms"),
    ),
)

OVERVIEW = Dashboard(
    uid="citylab-overview",
    title="City overview",
    description="What the city measures now, what is unwell, and what is missing. Made by `citylab dashboards push`: "
    "the next push replaces what is changed here.",
    variables=(_DATASTREAM,),
    panels=(
        _A_MINUTE, _WELL, _UNWELL_COUNT, _MISSING, _REFUSED, _CHART, _UNWELL, _NEWEST, _PER_MINUTE, _COMPLETENESS,
        _REASONS, _LEDGER,
    ),
)  # fmt: skip
DASHBOARDS = (OVERVIEW,)
