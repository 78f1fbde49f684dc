-- Processing services that live, by their heartbeats; who is first among them does what only one should do.
CREATE TABLE workers (
    number int PRIMARY KEY,
    run text COLLATE "C" NOT NULL UNIQUE,  -- of the process, drawn when it begins
    seen_at timestamptz NOT NULL           -- by the store's clock
);

-- What gateways last said of their outboxes, and when they were asked to send again what is missing.
CREATE TABLE outboxes (
    gateway text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    last bigint NOT NULL,                 -- number given out
    pending int8multirange NOT NULL,      -- numbers that the gateway still sends by itself
    gone int8multirange NOT NULL,         -- numbers that it has given up
    said_at timestamptz NOT NULL,
    ends jsonb NOT NULL,                  -- of the log when that was read: {"citylab.packs": {"0": 17}}
    looked boolean NOT NULL DEFAULT false,  -- whether the ledger was compared with it
    asked int NOT NULL DEFAULT 0,         -- times in a row
    ask_at timestamptz NOT NULL DEFAULT '-infinity',  -- not before
    PRIMARY KEY (gateway, epoch)
);
CREATE INDEX outboxes_to_look_at ON outboxes (ask_at) WHERE NOT looked;
