-- Things that move: their positions are observations of two of their Datastreams, in the units lon and lat.

ALTER TABLE datastreams ADD COLUMN axis text COLLATE "C" GENERATED ALWAYS AS (
    CASE WHEN properties ->> 'streamName' IS NULL THEN NULL
        WHEN 'lon' IN (properties ->> 'senmlUnit', unit_of_measurement ->> 'symbol') THEN 'lon'
        WHEN 'lat' IN (properties ->> 'senmlUnit', unit_of_measurement ->> 'symbol') THEN 'lat' END) STORED;
CREATE INDEX datastreams_by_axis ON datastreams (thing_id, axis) WHERE axis IS NOT NULL;

-- A Thing moves that has both; of several pairs the first.
CREATE VIEW moving_things AS
    SELECT thing_id, min(id) FILTER (WHERE axis = 'lon') AS longitude, min(id) FILTER (WHERE axis = 'lat') AS latitude
    FROM datastreams WHERE axis IS NOT NULL GROUP BY thing_id HAVING count(DISTINCT axis) = 2;

-- Whether a position made it. Any other was declared: by a descriptor, or through the API.
ALTER TABLE historical_locations ADD COLUMN by_position boolean NOT NULL DEFAULT false;
CREATE UNIQUE INDEX historical_locations_by_position ON historical_locations (thing_id, time) WHERE by_position;
CREATE INDEX historical_locations_declared ON historical_locations (thing_id, time) WHERE NOT by_position;

-- As in 0001, but for moves by position: where such Things were is no part of what writers cache.
CREATE OR REPLACE FUNCTION change_catalogue() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE now_version bigint := pg_current_xact_id()::text::bigint;
BEGIN
    IF current_setting('citylab.moves', true) = 'on' THEN RETURN NULL; END IF;
    PERFORM pg_advisory_xact_lock(7102003);
    UPDATE catalogue SET version = now_version WHERE version <> now_version;
    IF FOUND THEN NOTIFY citylab_catalogue; END IF;
    RETURN NULL;
END $$;
