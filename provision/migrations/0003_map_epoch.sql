-- The shard maps that this database has been part of. An order's receipt and event name its shard in the map under
-- which it was placed, and a later map must not change them.
CREATE TABLE orderflow_map (
    epoch      integer     PRIMARY KEY,
    shards     text        NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now()
);

-- Databases of earlier versions have had one map.
INSERT INTO orderflow_map (epoch, shards) SELECT 1, shard_map FROM orderflow_meta;

-- The epoch of the map under which the order was placed. A constant default rewrites nothing.
ALTER TABLE orders ADD COLUMN map_epoch integer NOT NULL DEFAULT 1;
