-- The ranges of users that this database may store. Each statement that stores orders locks a row FOR SHARE, so that a
-- range is given up only after every statement that names it, and none stores it later. 64 equal rows: a connection
-- locks the one of its backend, because several lockers of one row would need a multixact for each statement.
CREATE TABLE orderflow_gate (
    slot         smallint    PRIMARY KEY CHECK (slot BETWEEN 0 AND 63),
    owned        integer[]   NOT NULL,
    -- Given up until this time, or for good if the move is decided by then.
    fenced       integer[]   NOT NULL DEFAULT '{}',
    fenced_until timestamptz
) WITH (fillfactor = 50);

-- The ranges of a later epoch: a list of objects with from, range and shard. Those of the first follow from its map.
ALTER TABLE orderflow_map ADD COLUMN ranges jsonb;
