-- name: add_secret
-- Another secret of an endpoint; the others end at that moment, or earlier where they would have, and go when they have ended.
WITH gone AS (DELETE FROM webhookd.secret WHERE endpoint_id = $1 AND until <= now()),
others AS (UPDATE webhookd.secret SET until = LEAST(until, $4::timestamptz)
            WHERE endpoint_id = $1 AND $4::timestamptz IS NOT NULL AND (until IS NULL OR until > now()))
INSERT INTO webhookd.secret (endpoint_id, number, key_id, sealed)
SELECT p.id, COALESCE((SELECT max(s.number) + 1 FROM webhookd.secret s WHERE s.endpoint_id = p.id), 1), $2, $3
  FROM webhookd.endpoint p WHERE p.id = $1
RETURNING number;

-- name: secrets_of
SELECT key_id, sealed, until FROM webhookd.secret
 WHERE endpoint_id = $1 AND (until IS NULL OR until > now()) ORDER BY number DESC;

-- name: sealed
-- Secrets, a page after that one.
SELECT s.endpoint_id, s.number, s.key_id, s.sealed, concat_ws('/', NULLIF(p.tenant, ''), p.name)
  FROM webhookd.secret s JOIN webhookd.endpoint p ON p.id = s.endpoint_id
 WHERE (s.endpoint_id, s.number) > ($1::int, $2::int) ORDER BY s.endpoint_id, s.number LIMIT $3 FOR UPDATE OF s;

-- name: sealed_values_from
-- What else is sealed, a page after that one.
SELECT s.endpoint_id, s.name, s.key_id, s.content, concat_ws('/', NULLIF(p.tenant, ''), p.name)
  FROM webhookd.sealed s JOIN webhookd.endpoint p ON p.id = s.endpoint_id
 WHERE (s.endpoint_id, s.name) > ($1::int, $2::text) ORDER BY s.endpoint_id, s.name LIMIT $3 FOR UPDATE OF s;

-- name: seal_value_again
UPDATE webhookd.sealed SET key_id = $3, content = $4 WHERE endpoint_id = $1 AND name = $2;

-- name: seal_again
UPDATE webhookd.secret SET key_id = $3, sealed = $4 WHERE endpoint_id = $1 AND number = $2;
