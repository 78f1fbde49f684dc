-- Processing services that live, by their heartbeats; who is first among them does what only one should do.
CREATE TABLE workers (
    number int PRIMARY KEY,
    run text COLLATE "C" NOT NULL UNIQUE,  -- of the process, drawn when it begins
    seen_at timestamptz NOT NULL           -- by the store's clock
);

-- Which outboxes were held against the ledger, and when their gateways were asked to send again what is missing.
ALTER TABLE outboxes
    ADD COLUMN looked boolean NOT NULL DEFAULT false,  -- whether the ledger was compared with it
    ADD COLUMN asked int NOT NULL DEFAULT 0,           -- times in a row
    ADD COLUMN ask_at timestamptz NOT NULL DEFAULT '-infinity';  -- not before
CREATE INDEX outboxes_to_look_at ON outboxes (ask_at) WHERE NOT looked;
