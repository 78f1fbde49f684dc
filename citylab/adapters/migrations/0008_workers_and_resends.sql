-- Processing services that live, by their heartbeats; who is first among them does what only one should do.
CREATE TABLE workers (
    number int PRIMARY KEY,
    run text COLLATE "C" NOT NULL UNIQUE,  -- of the process, drawn when it begins
    seen_at timestamptz NOT NULL           -- by the store's clock
);

-- Which status of an outbox was last held against the ledger, and when its gateway may be asked for missing packs again.
CREATE TABLE resends (
    gateway text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    looked_at timestamptz NOT NULL,       -- the `at` of that status in `outboxes`
    asked int NOT NULL,                   -- times in a row
    ask_at timestamptz NOT NULL,          -- not before
    PRIMARY KEY (gateway, epoch)
);
