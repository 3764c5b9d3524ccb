-- name: message_at_once
-- All of it in one statement, by whoever takes the lock of the request; NULL when nothing was done.
SELECT CASE WHEN $3::bytea IS NULL OR pg_try_advisory_xact_lock($5::bigint)
            THEN webhookd.add_message($1, $2, $3, $4, $6, $7, $8, $9, $10, $11, $12) END;

-- name: message_add
INSERT INTO webhookd.outbox (event_id, type, payload, tenant, metadata, ordering_key, deliver_after) VALUES ($2, $3, $4, $1, $5, $6, $7) RETURNING created_at;

-- name: message_add_named
-- With what its caller calls it, unless another event of the tenant is called so: then nothing is inserted.
-- What one of before was called, whose key the tenant has taken, is forgotten.
WITH named AS (
  INSERT INTO webhookd.event_alias AS l (tenant, alias, event_id) VALUES ($1, $8, $2)
  ON CONFLICT (tenant, alias) DO UPDATE SET event_id = EXCLUDED.event_id, at = EXCLUDED.at WHERE l.at < $9::timestamptz RETURNING 1)
INSERT INTO webhookd.outbox (event_id, type, payload, tenant, metadata, ordering_key, deliver_after)
SELECT $2, $3, $4, $1, $5, $6, $7 FROM named RETURNING created_at;

-- name: message
-- By its id, or by what its caller calls it; of a tenant's own only.
SELECT o.event_id, o.type, o.created_at, o.metadata, o.deliver_after,
       (SELECT l.alias FROM webhookd.event_alias l WHERE l.event_id = o.event_id AND l.tenant = o.tenant LIMIT 1) AS alias,
       CASE WHEN $4::boolean THEN o.payload END AS payload
  FROM (SELECT $2::text AS id UNION SELECT a.event_id FROM webhookd.event_alias a WHERE a.tenant = $1 AND a.alias = $2) wanted
  JOIN webhookd.outbox o ON o.event_id = wanted.id
 WHERE o.tenant = $1 AND NOT o.own AND ($3::timestamptz IS NULL OR o.created_at >= $3) ORDER BY o.id DESC LIMIT 1;

-- name: cipher
SELECT key FROM webhookd.cipher;

-- name: messages
-- A page of a tenant's. The first column of all rows is where the next begins; there is one without an event where nothing fits.
SELECT p.edge, m.* FROM webhookd.message_page($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) p
  LEFT JOIN LATERAL (
    SELECT o.id, o.event_id, o.type, o.created_at, o.metadata, o.deliver_after,
           (SELECT l.alias FROM webhookd.event_alias l WHERE l.event_id = o.event_id AND l.tenant = o.tenant LIMIT 1) AS alias,
           CASE WHEN $10::boolean THEN o.payload END AS payload
      FROM unnest(p.ids, p.ats) WITH ORDINALITY u(id, at, n) JOIN webhookd.outbox o ON o.id = u.id AND o.created_at = u.at ORDER BY u.n) m ON true;

-- name: message_expunge
SELECT webhookd.expunge($1, $2, $3);
