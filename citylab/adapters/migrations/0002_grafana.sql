-- What Grafana reads: views in a schema of their own, and a role that reads them and nothing else.
-- Views run with their owner's rights, so the role needs none on the tables behind them.

CREATE SCHEMA grafana;

-- Roles belong to the whole cluster, whose databases may be migrated at the same moment: whoever comes second waits
-- for the first one's transaction and finds the role complete.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'citylab_grafana') THEN
        CREATE ROLE citylab_grafana NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT 40;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'citylab_grafana' AND rolconfig IS NOT NULL) THEN
        ALTER ROLE citylab_grafana SET statement_timeout = '30s';
        ALTER ROLE citylab_grafana SET idle_in_transaction_session_timeout = '60s';
        ALTER ROLE citylab_grafana SET default_transaction_read_only = on;
        ALTER ROLE citylab_grafana SET search_path = grafana;
        ALTER ROLE citylab_grafana SET timezone = 'UTC';
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'this account may not create the role citylab_grafana'
            USING HINT = 'Let an administrator run CREATE ROLE citylab_grafana, then citylab migrate again.';
END $$;

-- How many whole numbers a set of ranges holds.
CREATE FUNCTION numbers_in(ranges int8multirange) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    'SELECT coalesce(sum(upper(r) - lower(r)), 0)::bigint FROM unnest(ranges) r';

-- Ranges [[a, b], ...] of an outbox as its gateway reported them; what is no range is left out.
CREATE FUNCTION reported_ranges(status jsonb, what text) RETURNS int8multirange LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(range_agg(int8range((r ->> 0)::numeric::bigint, (r ->> 1)::numeric::bigint, '[]')), '{}')
    FROM jsonb_path_query(
        status #> ARRAY['outbox', what],
        'strict $[*] ? (@[0] >= 1 && @[0] <= @[1] && @[1] <= 9007199254740991)', '{}', true
    ) r
$$;

CREATE VIEW grafana.things AS
SELECT t.id, t.name AS thing, t.description, t.gateway, p.name AS pilot,
    (l.location #>> '{coordinates,0}')::float8 AS longitude, (l.location #>> '{coordinates,1}')::float8 AS latitude,
    l.name AS place
FROM things t
JOIN pilots p ON p.id = t.pilot
LEFT JOIN LATERAL (
    SELECT l.name, l.location FROM things_locations tl JOIN locations l ON l.id = tl.location_id
    WHERE tl.thing_id = t.id AND l.location ->> 'type' = 'Point'
        AND jsonb_typeof(l.location #> '{coordinates,0}') = 'number'
        AND jsonb_typeof(l.location #> '{coordinates,1}') = 'number'
    ORDER BY l.id LIMIT 1
) l ON true;

CREATE VIEW grafana.datastreams AS
SELECT d.id, d.name AS datastream, d.description, d.stream_name, d.thing_id, t.name AS thing, t.gateway,
    o.name AS observed_property, o.definition, s.name AS sensor,
    d.unit_of_measurement ->> 'symbol' AS unit, d.unit_of_measurement ->> 'name' AS unit_name,
    extract(epoch FROM declared_interval(d.properties))::float8 AS interval_seconds,
    d.properties ->> 'stamp' AS stamp,
    coalesce(d.properties ->> 'active', 'true') <> 'false' AS active
FROM datastreams d
JOIN things t ON t.id = d.thing_id
JOIN observed_properties o ON o.id = d.observed_property_id
JOIN sensors s ON s.id = d.sensor_id;

CREATE VIEW grafana.observations AS
SELECT o.datastream_id, o.phenomenon_time AS time, o.result_number AS value,
    CASE o.quality WHEN 1 THEN 'good' WHEN 2 THEN 'suspect' WHEN 3 THEN 'bad' END AS flag,
    o.result_time
FROM observations o
WHERE o.result_number IS NOT NULL;

-- Silent: three intervals and a minute without a value, or an hour where no interval is declared.
CREATE VIEW grafana.latest AS
SELECT d.id AS datastream_id, d.thing, d.datastream, d.observed_property, d.gateway, d.stream_name,
    l.phenomenon_time AS time, l.result_number AS value, d.unit,
    CASE WHEN l.result_number IS NULL THEN l.result_json #>> '{}' END AS text,
    CASE l.quality WHEN 1 THEN 'good' WHEN 2 THEN 'suspect' WHEN 3 THEN 'bad' END AS flag,
    extract(epoch FROM now() - l.phenomenon_time)::float8 AS age_seconds, d.interval_seconds,
    coalesce(l.count, 0) AS observations,
    CASE
        WHEN NOT d.active THEN 'retired'
        WHEN l.phenomenon_time IS NULL THEN 'never heard'
        WHEN extract(epoch FROM now() - l.phenomenon_time) > coalesce(3 * d.interval_seconds + 60, 3600) THEN 'silent'
        WHEN l.quality = 3 THEN 'bad'
        WHEN l.quality = 2 THEN 'suspect'
        ELSE 'well'
    END AS state
FROM grafana.datastreams d
LEFT JOIN latest l ON l.datastream_id = d.id;

-- Completeness: received of expected; of a window that is not over, expected so far.
CREATE VIEW grafana.aggregates AS
SELECT a.datastream_id, a.width, a.window_start AS time, a.count, a.good_count, a.mean, a.min, a.max, a.first, a.last,
    CASE WHEN a.good_count > 1 THEN sqrt(greatest(a.m2, 0) / (a.good_count - 1)) END AS standard_deviation,
    e.expected, CASE WHEN e.expected > 0 THEN least(1, a.count / e.expected) END AS completeness
FROM aggregates a
JOIN datastreams d ON d.id = a.datastream_id
CROSS JOIN LATERAL (SELECT extract(epoch FROM declared_interval(d.properties))::float8 AS seconds) i
CROSS JOIN LATERAL (
    SELECT CASE WHEN i.seconds > 0 THEN
        greatest(1, floor(least(a.width, extract(epoch FROM now() - a.window_start))::float8 / i.seconds))
    END AS expected
) e;

-- How many observations a moment brought: minutes, and the rows themselves of streams too slow to have any.
-- Joined to the datastreams, so that a short range is found stream by stream and not in the whole index.
CREATE VIEW grafana.throughput AS
SELECT a.datastream_id, a.window_start AS time, a.count
FROM datastreams d
JOIN aggregates a ON a.datastream_id = d.id AND a.width = 60
UNION ALL
SELECT o.datastream_id, o.phenomenon_time, 1
FROM datastreams d
JOIN observations o ON o.datastream_id = d.id
WHERE declared_interval(d.properties) > interval '1 minute' AND o.result_number IS NOT NULL;

CREATE VIEW grafana.gateways AS
SELECT g.name AS gateway, g.status ->> 'state' AS state, g.status_at, g.status ->> 'agent' AS agent,
    numbers_in(reported_ranges(g.status, 'pending')) AS packs_waiting,
    g.descriptor_at, l.last_at, extract(epoch FROM now() - l.last_at)::float8 AS silent_seconds
FROM gateways g
LEFT JOIN LATERAL (SELECT max(l.last_at) AS last_at FROM ledger l WHERE l.gateway = g.name) l ON true;

-- A number below the highest that arrived is missing unless its gateway says that it still has it, or has not.
CREATE VIEW grafana.ledger AS
SELECT l.gateway, l.epoch, l.first_at, l.last_at, l.packs, l.duplicate_packs, numbers_in(l.received) AS received,
    CASE WHEN l.epoch > 0 THEN numbers_in(r.gaps - r.waiting - r.lost) END AS missing,
    numbers_in(r.waiting - l.received) AS waiting, numbers_in(r.lost - l.received) AS lost,
    l.records, l.stored, l.duplicates, l.rejected, l.untimed, l.skew_ms
FROM ledger l
LEFT JOIN gateways g ON g.name = l.gateway AND g.status #>> '{outbox,epoch}' = l.epoch::text
CROSS JOIN LATERAL (
    SELECT
        CASE WHEN isempty(l.received) THEN '{}'::int8multirange
            ELSE int8multirange(int8range(1, upper(l.received))) - l.received END AS gaps,
        coalesce(reported_ranges(g.status, 'pending'), '{}') AS waiting,
        coalesce(reported_ranges(g.status, 'gone'), '{}') AS lost
) r;

-- Records rejected by reason, over all time; and each of them, without what was in it.
CREATE VIEW grafana.rejected AS
SELECT l.gateway, l.epoch, r.key AS reason, r.value::bigint AS records
FROM ledger l CROSS JOIN LATERAL jsonb_each_text(l.rejected_by_reason) r;

CREATE VIEW grafana.rejections AS
SELECT r.id, r.received_at AS time, r.gateway, r.reason, r.detail, r.stream, r.epoch, r.seq, r.record,
    r.closed_at IS NULL AS open
FROM rejections r;

GRANT USAGE ON SCHEMA grafana TO citylab_grafana;
GRANT SELECT ON ALL TABLES IN SCHEMA grafana TO citylab_grafana;
