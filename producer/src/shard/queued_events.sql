-- Searches the queue tables for the events of the orders $1: the newest $2 rows of the outbox, and the events that
-- Kafka refused for good. Also returns when the order was accepted whose event is first in the outbox, and how many
-- rows were searched.
WITH newest AS MATERIALIZED (
    SELECT event_id FROM outbox ORDER BY seq DESC LIMIT $2
)
SELECT
    ARRAY(SELECT event_id FROM newest WHERE event_id = ANY($1)) AS waiting,
    ARRAY(SELECT event_id FROM outbox_dead WHERE event_id = ANY($1)) AS refused,
    (SELECT (extract(epoch FROM created_at) * 1000000)::bigint FROM outbox ORDER BY seq LIMIT 1) AS oldest,
    (SELECT count(*) FROM newest) AS counted
