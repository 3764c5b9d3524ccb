-- name: consumer
-- How far one has come, and what it missed.
SELECT batch, pos, nonce, extract(epoch FROM cut_at)::float8, missed_from, missed_to, missed FROM webhookd.consumer WHERE endpoint_id = $1 AND name = $2;

-- name: consumer_put
-- It has come so far, and is yet to be told what it missed. A number of consumers is enough for an endpoint.
INSERT INTO webhookd.consumer AS c (endpoint_id, name, batch, pos, nonce, cut_at, missed_from, missed_to, missed)
SELECT $1, $2, $3, $4, $5, to_timestamp($6::float8), $7, $8, $9
 WHERE EXISTS (SELECT FROM webhookd.consumer k WHERE k.endpoint_id = $1 AND k.name = $2) OR (SELECT count(*) FROM webhookd.consumer k WHERE k.endpoint_id = $1) < $10
ON CONFLICT (endpoint_id, name) DO UPDATE
   SET batch = EXCLUDED.batch, pos = EXCLUDED.pos, nonce = EXCLUDED.nonce, cut_at = EXCLUDED.cut_at, used_at = now(),
       missed_from = EXCLUDED.missed_from, missed_to = EXCLUDED.missed_to, missed = EXCLUDED.missed
RETURNING endpoint_id;

-- name: consumer_used
-- It asks, and does not go on.
UPDATE webhookd.consumer SET used_at = now() WHERE endpoint_id = $1 AND name = $2 AND used_at < now() - interval '1 min';

-- name: batch_there
-- What is in the log under this id, the last that is, and the version of the endpoints.
SELECT b.id, b.nonce, extract(epoch FROM b.cut_at)::float8, n.id, extract(epoch FROM now())::float8, webhookd.config_now()
  FROM (SELECT max(id) AS id FROM webhookd.batch) n LEFT JOIN webhookd.batch b ON b.id = $1;

-- name: batch_since
-- Where what came from that moment on begins, or what was cut from then on; behind the last batch where nothing was.
WITH first AS MATERIALIZED (SELECT webhookd.batch_since(to_timestamp($1::float8), $2) AS id)
SELECT b.id, b.nonce, extract(epoch FROM b.cut_at)::float8, f.id IS NULL FROM first f
  JOIN webhookd.batch b ON b.id = COALESCE(f.id, (SELECT max(k.id) FROM webhookd.batch k));

-- name: batch_kept
-- The first batch of which retention has taken nothing.
SELECT b.id, b.nonce, extract(epoch FROM b.cut_at)::float8 FROM webhookd.batch b WHERE b.id = webhookd.first_kept();

-- name: move_consumers
-- Those that have not read what retention takes next go on behind it.
SELECT format('consumer %s of endpoint %s', name, endpoint_id),
       format('retention takes %s that it had not read, and it goes on behind', COALESCE(missed || ' events', 'what'))
  FROM webhookd.move_consumers($1 * interval '1 s');

-- name: forget_consumers
-- Nobody has come back for them.
DELETE FROM webhookd.consumer c WHERE c.used_at < now() - interval '90 days' OR EXISTS (SELECT FROM webhookd.endpoint e WHERE e.id = c.endpoint_id AND e.removed_at < now() - interval '7 days');
