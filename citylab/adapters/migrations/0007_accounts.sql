-- What the ledger answers beyond counts: since when numbers are missing, what their gateways said of them, how long packs
-- took; and rejections that are taken up again because somebody asks for it.

-- How many packs took how long, in the buckets of `citylab/delays.py`: sums of these are those of all their packs.
ALTER TABLE ledger
    ADD COLUMN delays_measured bigint[] NOT NULL DEFAULT '{}',  -- from a pack's newest record to its storage
    ADD COLUMN delays_received bigint[] NOT NULL DEFAULT '{}';  -- from the platform's receipt to its storage

-- Numbers that a write passed and did not bring all of. A row goes when all of them are there.
CREATE TABLE gaps (
    gateway text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    numbers int8range NOT NULL,
    since timestamptz NOT NULL,           -- when a higher number was first received
    PRIMARY KEY (gateway, epoch, numbers)
);

-- What a gateway last said of each of its outboxes.
CREATE TABLE outboxes (
    gateway text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    last bigint NOT NULL,
    pending int8multirange NOT NULL,
    gone int8multirange NOT NULL,
    at timestamptz NOT NULL,
    ends jsonb,                           -- where the packs' partitions ended when it was read; null: not known
    PRIMARY KEY (gateway, epoch)
);
INSERT INTO outboxes
SELECT name, (o ->> 'epoch')::numeric::bigint, (o ->> 'last')::numeric::bigint, reported_ranges(status, 'pending'),
    reported_ranges(status, 'gone'), status_at
FROM gateways, jsonb_path_query(
    status, 'strict $.outbox ? (@.epoch >= 1 && @.epoch <= 9007199254740991 && @.last >= 0 && @.last <= 9007199254740991)',
    '{}', true) o;

-- The numbers of each outbox that have not come. Missing is what its gateway neither has nor dropped, as it said in a
-- status, when the log has since been read to where it ended then; of the rest nobody can say yet.
CREATE VIEW absent_numbers AS
SELECT gateway, epoch, a.absent, p.pending, g.gone, m.missing, a.absent - p.pending - g.gone - m.missing AS unsettled
FROM ledger l FULL JOIN outboxes o USING (gateway, epoch)
CROSS JOIN LATERAL (SELECT CASE WHEN epoch = 0 THEN '{}' ELSE
    int8multirange(int8range(1, coalesce(greatest(upper(l.received), o.last + 1), 1))) - coalesce(l.received, '{}') END) a (absent)
CROSS JOIN LATERAL (SELECT a.absent * coalesce(o.pending, '{}')) p (pending)
CROSS JOIN LATERAL (SELECT a.absent * coalesce(o.gone, '{}') - p.pending) g (gone)
CROSS JOIN LATERAL (SELECT CASE WHEN o.ends IS NULL OR isempty(a.absent - p.pending - g.gone) OR EXISTS (
        SELECT FROM jsonb_each_text(o.ends) e
        LEFT JOIN positions q ON q.consumer = 'processing' AND q.topic = 'citylab.packs' AND q.partition = e.key::int
        WHERE coalesce(q."offset", 0) < e.value::bigint)
    THEN '{}' ELSE (a.absent - p.pending - g.gone) * int8multirange(int8range(1, o.last + 1)) END) m (missing);

CREATE OR REPLACE VIEW grafana.ledger AS
SELECT l.gateway, l.epoch, l.first_at, l.last_at, l.packs, l.duplicate_packs, numbers_in(l.received) AS received,
    CASE WHEN l.epoch > 0 THEN numbers_in(a.missing) END AS missing,
    numbers_in(a.pending) AS waiting, numbers_in(a.gone) AS lost,
    l.records, l.stored, l.duplicates, l.rejected, l.untimed, l.skew_ms,
    CASE WHEN l.epoch > 0 THEN numbers_in(a.unsettled) END AS unsettled
FROM ledger l JOIN absent_numbers a USING (gateway, epoch);

-- Requests to take rejections up again, and what became of the records.
CREATE TABLE replays (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    requested_at timestamptz NOT NULL DEFAULT now(),
    asked bigint NOT NULL,                -- rejections
    stored bigint NOT NULL DEFAULT 0,     -- records
    duplicates bigint NOT NULL DEFAULT 0,
    rejected jsonb NOT NULL DEFAULT '{}'  -- by reason
);
ALTER TABLE rejections ADD COLUMN replay bigint;  -- the request that it waits for
CREATE INDEX rejections_waiting ON rejections (replay, id) WHERE replay IS NOT NULL;
CREATE INDEX rejections_open_by_reason ON rejections (reason, id) WHERE closed_at IS NULL;
CREATE INDEX rejections_open_by_stream ON rejections (stream) WHERE closed_at IS NULL;
