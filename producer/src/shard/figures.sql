-- Reads the figures of a shard and its backlog, in some 20 ms at most, whatever its size: counts stop at $1, and ages
-- are read from the left end of an index. Orders are never deleted, so the larger of two estimates is the better one:
-- the planner's (right after the last ANALYZE) and the counted inserts (lost when Postgres crashes). Ids are UUIDv7, so
-- the smallest id of the receipt jobs belongs to the order that has waited longest.
SELECT
    (SELECT count(*) FROM (SELECT FROM orders LIMIT $1 + 1) AS counted) AS orders_counted,
    (SELECT greatest(
                pg_stat_get_live_tuples(oid),
                (CASE
                    WHEN relpages > 0
                        THEN reltuples / relpages * pg_relation_size(oid) / current_setting('block_size')::integer
                    ELSE 0
                END)::bigint
            )
     FROM pg_class WHERE oid = 'orders'::regclass) AS orders_estimate,
    (SELECT count(*) FROM (SELECT FROM outbox LIMIT $1) AS counted) AS outbox,
    (SELECT greatest(extract(epoch FROM now() - created_at), 0)::float8 FROM outbox ORDER BY seq LIMIT 1) AS outbox_age,
    (SELECT (extract(epoch FROM created_at) * 1000000)::bigint FROM outbox ORDER BY seq LIMIT 1) AS outbox_oldest,
    $2::bigint AS oldest_write,
    (SELECT count(*) FROM (SELECT FROM receipt_jobs LIMIT $1) AS counted) AS receipt_jobs,
    (SELECT greatest(extract(epoch FROM now() - created_at), 0)::float8 FROM orders
     WHERE id = (SELECT order_id FROM receipt_jobs ORDER BY order_id LIMIT 1)) AS receipt_jobs_age,
    (SELECT count(*) FROM (SELECT FROM outbox_dead LIMIT $1) AS counted) AS refused_events
