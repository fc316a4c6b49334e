-- Stores a batch of orders in one transaction: key, order, outbox row and receipt job together or not at all.
-- Rows are sorted by (user_id, key), so that two writers lock keys in the same order.
-- A batch that is sent twice (its first outcome was unknown) changes nothing: existing orders are not returned.
-- If the database may not store all ranges of the batch ($13), nothing is stored, and one NULL is returned. The lock
-- keeps the ranges until the commit; it reads the newest version of the row, whatever the statement's snapshot is.
WITH gate AS MATERIALIZED (
    SELECT FROM orderflow_gate
    WHERE slot = pg_backend_pid() % 64
      AND (owned @> $13::int[] OR (owned || fenced @> $13::int[] AND fenced_until <= clock_timestamp()))
    FOR SHARE
),
input AS MATERIALIZED (
    SELECT input.*
    FROM gate, unnest($1::uuid[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::text[], $7::timestamptz[],
                      $8::text[], $9::bytea[], $10::bytea[], $11::text[], $12::int[])
      AS input(id, user_id, product_name, quantity, cents, receipt_s3_key, created_at,
               key, fingerprint, payload, traceparent, map_epoch)
),
claimed AS (
    -- The database's clock dates keys, and the purge uses it too: a producer's clock may be a day behind.
    INSERT INTO idempotency_keys (user_id, key, fingerprint, order_id, created_at)
    SELECT user_id, key, fingerprint, id, now() FROM input WHERE key IS NOT NULL
    ON CONFLICT DO NOTHING
    RETURNING order_id
),
stored AS (
    INSERT INTO orders (id, user_id, product_name, quantity, price, status, receipt_s3_key, created_at, updated_at,
                        map_epoch)
    SELECT id, user_id, product_name, quantity, cents * 0.01, 'created', receipt_s3_key, created_at, created_at,
           map_epoch
    FROM input
    WHERE key IS NULL OR id IN (SELECT order_id FROM claimed)
    ON CONFLICT (id) DO NOTHING
    RETURNING id
),
to_publish AS (
    INSERT INTO outbox (event_id, order_id, user_id, payload, traceparent, created_at)
    SELECT id, id, user_id, payload, traceparent, created_at FROM input WHERE id IN (SELECT id FROM stored)
),
to_receipt AS (
    INSERT INTO receipt_jobs (order_id, traceparent, available_at)
    -- Only of an order that is recorded: the span of its receipt is all that needs it.
    SELECT id, CASE WHEN traceparent LIKE '%-01' THEN traceparent END, now() FROM input WHERE id IN (SELECT id FROM stored)
)
SELECT id FROM stored
UNION ALL
SELECT NULL WHERE NOT EXISTS (SELECT FROM gate)
