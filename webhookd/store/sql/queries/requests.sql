-- name: request_begin
-- Who is asking, for the audit. Who asks the same a second time meanwhile does not wait with a connection in hand; the lock ends with the transaction,
-- or with the connection of one that died.
SELECT $2::bigint IS NULL OR pg_try_advisory_xact_lock($2) FROM (SELECT set_config('webhookd.who', $1, true)) said;

-- name: request_answered
SELECT body, status, made FROM webhookd.request WHERE key = $1 AND at > now() - interval '12 hours' ORDER BY at DESC LIMIT 1;

-- name: request_keep
-- In the slot of this hour; what may be there of the same key is of a time that is over.
INSERT INTO webhookd.request AS r (slot, key, body, status, made) VALUES (webhookd.request_slot(now()), $1, $2, $3, $4)
ON CONFLICT (slot, key) DO UPDATE SET body = EXCLUDED.body, status = EXCLUDED.status, made = EXCLUDED.made, at = EXCLUDED.at;
