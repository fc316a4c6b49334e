-- The trace that the span of a receipt's PUT belongs to. The outbox has it too, but loses its row when the event is
-- published, which may be before or after the receipt is written.
ALTER TABLE receipt_jobs ADD COLUMN traceparent varchar(55);
