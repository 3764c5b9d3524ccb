-- name: message_add
INSERT INTO webhookd.outbox (event_id, type, payload, tenant, metadata, ordering_key, deliver_after) VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING created_at;

-- name: message_add_named
-- With what its caller calls it, unless another event of the tenant is called so: then nothing is inserted.
-- What one of before was called, whose key the tenant has taken, is forgotten.
WITH named AS (
  INSERT INTO webhookd.event_alias AS l (tenant, alias, event_id) VALUES ($4, $8, $1)
  ON CONFLICT (tenant, alias) DO UPDATE SET event_id = EXCLUDED.event_id, at = EXCLUDED.at WHERE l.at < $9::timestamptz RETURNING 1)
INSERT INTO webhookd.outbox (event_id, type, payload, tenant, metadata, ordering_key, deliver_after)
SELECT $1, $2, $3, $4, $5, $6, $7 FROM named RETURNING created_at;

-- name: message
-- By its id, or by what its caller calls it; of a tenant's own only.
SELECT o.event_id, o.type, o.created_at, o.metadata, o.deliver_after,
       (SELECT l.alias FROM webhookd.event_alias l WHERE l.event_id = o.event_id AND l.tenant = o.tenant LIMIT 1) AS alias,
       CASE WHEN $4::boolean THEN o.payload END AS payload
  FROM (SELECT $2::text AS id UNION SELECT a.event_id FROM webhookd.event_alias a WHERE a.tenant = $1 AND a.alias = $2) wanted
  JOIN webhookd.outbox o ON o.event_id = wanted.id
 WHERE o.tenant = $1 AND NOT o.own AND ($3::timestamptz IS NULL OR o.created_at >= $3) ORDER BY o.id DESC LIMIT 1;
