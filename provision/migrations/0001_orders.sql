-- Everything that one shard holds. No table has a foreign key: the producer writes the rows of one order in one statement,
-- a key outlives nothing, and the check would be paid for every order.
--
-- Users and keys are COLLATE "C": they are only ever compared for equality, bytes are the cheapest way to do that, a batch
-- that the producer sorted by bytes locks its rows in index order, and no upgrade of the system's locales can
-- silently corrupt an index over them. created_at always comes from the producer, which answers with the same value.

-- Orders: inserted once, never updated, so that every page can be full. The id is a UUIDv7, made before the write: its index
-- grows at the right end like one over a sequence.
CREATE TABLE orders (
    id             uuid                     PRIMARY KEY,
    user_id        varchar(100) COLLATE "C" NOT NULL,
    product_name   varchar(255)             NOT NULL,
    quantity       integer                  NOT NULL CHECK (quantity > 0),
    price          numeric(10, 2)           NOT NULL CHECK (price > 0),
    status         varchar(50)              NOT NULL,
    receipt_s3_key varchar(512)             NOT NULL,
    created_at     timestamptz              NOT NULL,
    updated_at     timestamptz              NOT NULL
);

-- One user's pages, newest first, and everybody's. The id makes the order total: two orders of one microsecond
-- neither swap nor fall between two pages.
CREATE INDEX orders_user_id_created_at_id_idx ON orders (user_id, created_at DESC, id DESC);
CREATE INDEX orders_created_at_id_idx ON orders (created_at DESC, id DESC);

-- Which order an Idempotency-Key of a user made, and from which fields. The primary key is what makes one order of many
-- equal requests. Rows live for a day; a vacuum each 2 % keeps the dead ones out of the purge's way.
CREATE TABLE idempotency_keys (
    user_id     varchar(100) COLLATE "C" NOT NULL,
    key         varchar(255) COLLATE "C" NOT NULL,
    fingerprint bytea                    NOT NULL,
    order_id    uuid                     NOT NULL,
    created_at  timestamptz              NOT NULL,
    PRIMARY KEY (user_id, key)
) WITH (autovacuum_vacuum_scale_factor = 0.02);

-- For the purge, which deletes the oldest rows slice by slice. A btree, although it grows with every key, always at its right
-- end: a BRIN gives no order to take slices in, and its ranges only ever widen, so that once purged pages are filled
-- again each of them seems to hold something old and every purge would read the whole table.
CREATE INDEX idempotency_keys_created_at_idx ON idempotency_keys (created_at);

-- Events that Kafka does not have yet. seq gives the relay its order and nothing else; it is never a cursor, as a smaller seq
-- may commit after a larger one. No index over event_id: only a relay that takes over deletes by it, once, at most
-- 1000 ids, and those are among the oldest rows, which it finds by seq.
--
-- Rows are inserted and deleted, and the table is empty most of the time: vacuumed by count, not by share, and without
-- pauses, or the relay wades through what it deleted. After an outage it may hold millions of rows; analyzing
-- by count keeps the planner from believing in them for long.
CREATE TABLE outbox (
    seq         bigint                   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id    uuid                     NOT NULL,
    order_id    uuid                     NOT NULL,
    user_id     varchar(100) COLLATE "C" NOT NULL,
    payload     bytea                    NOT NULL,
    traceparent varchar(55),
    created_at  timestamptz              NOT NULL
) WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0
);

-- Events that Kafka refused for what they are (too large, invalid). They keep all that is needed to queue them again;
-- each one is an alarm.
CREATE TABLE outbox_dead (
    event_id    uuid                     PRIMARY KEY,
    order_id    uuid                     NOT NULL,
    user_id     varchar(100) COLLATE "C" NOT NULL,
    payload     bytea                    NOT NULL,
    traceparent varchar(55),
    created_at  timestamptz              NOT NULL,
    reason      text                     NOT NULL,
    died_at     timestamptz              NOT NULL DEFAULT now()
);

-- Orders whose receipt S3 does not have yet; a row is gone when it has. A worker claims jobs in index order by moving
-- available_at ahead. That column is indexed, so such an UPDATE is never HOT, whatever room a page has: no fillfactor, but
-- the vacuum of a queue, as above.
CREATE TABLE receipt_jobs (
    order_id     uuid        PRIMARY KEY,
    attempts     integer     NOT NULL DEFAULT 0,
    available_at timestamptz NOT NULL
) WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX receipt_jobs_available_at_order_id_idx ON receipt_jobs (available_at, order_id);

-- Whose database this is, as which shard of which map, and how new its tables are. One row. Topic and bucket are written
-- down here because they cannot remember an owner themselves, or not everywhere.
CREATE TABLE orderflow_meta (
    singleton      boolean     PRIMARY KEY DEFAULT true CHECK (singleton),
    owner          text        NOT NULL,
    shard_name     text        NOT NULL,
    shard_index    integer     NOT NULL,
    shard_map      text        NOT NULL,
    topic          text,
    bucket         text,
    schema_version bigint      NOT NULL,
    updated_at     timestamptz NOT NULL DEFAULT now()
);
