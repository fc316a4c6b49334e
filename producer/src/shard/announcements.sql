-- Which of the orders $1 have an event in the outbox, of which the newest $2 are looked through, and which have one that Kafka
-- refused for good; when the order was accepted whose event waits first; how many were looked through.
WITH newest AS MATERIALIZED (
    SELECT event_id FROM outbox ORDER BY seq DESC LIMIT $2
)
SELECT
    ARRAY(SELECT event_id FROM newest WHERE event_id = ANY($1)) AS waiting,
    ARRAY(SELECT event_id FROM outbox_dead WHERE event_id = ANY($1)) AS refused,
    (SELECT created_at FROM outbox ORDER BY seq LIMIT 1) AS oldest,
    (SELECT count(*) FROM newest) AS counted
