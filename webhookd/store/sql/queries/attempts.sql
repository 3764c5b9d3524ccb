-- name: attempts
-- A page of a tenant's attempts.
SELECT at, outbox_id, endpoint_id, attempt, event_id, endpoint, url, ok, code, ms, error, response, trigger
  FROM webhookd.attempt_page($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19);

-- name: attempt
-- One, of this event of the tenant.
SELECT a.at, a.outbox_id, a.endpoint_id, a.attempt, o.event_id, e.name, e.spec ->> 'url', a.ok, a.code, a.ms, a.error, a.response, a.trigger
  FROM webhookd.attempt a JOIN webhookd.outbox o ON o.id = a.outbox_id AND o.id = ANY ($2::bigint[]) AND o.tenant = $1
  JOIN webhookd.endpoint e ON e.id = a.endpoint_id AND ($3::boolean OR e.tenant <> '*')
 WHERE a.at = $4 AND a.outbox_id = $5 AND a.endpoint_id = $6 AND a.attempt = $7;

-- name: attempt_expunge
SELECT webhookd.expunge_attempt($1, $2, $3, $4, $5, $6, $7);

-- name: deliveries_of_endpoint
-- A page of a tenant's events that an endpoint was owed.
SELECT id, created_at, size, event_id, type, metadata, deliver_after, alias, state, reason, due
  FROM webhookd.delivery_page($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: payloads_of
-- What these events say.
SELECT o.id, o.payload FROM unnest($1::bigint[], $2::timestamptz[]) u(id, at) JOIN webhookd.outbox o ON o.id = u.id AND o.created_at = u.at;

-- name: deliveries_of_event
-- Endpoints that events of a tenant were owed, which have one id, by their names, with what became of them there.
WITH tried AS MATERIALIZED (
  SELECT a.endpoint_id, bool_or(a.ok) AS ok FROM webhookd.attempt a
   WHERE a.outbox_id = ANY ($2::bigint[]) AND a.at >= $3::timestamptz - interval '1 min' AND a.at < now() + interval '1 day' AND (a.ok OR a.trigger IS DISTINCT FROM 'resend')
   GROUP BY 1),
owed AS MATERIALIZED (
  SELECT DISTINCT ON (b.endpoint_id) b.endpoint_id, b.attempts, b.due, b.last_error,
         CASE WHEN b.state = 'retry' AND b.attempts = 0 AND b.last_error IS NULL THEN 'waiting' WHEN b.state = 'retry' THEN 'retrying'
              WHEN b.state = 'rejected' AND b.last_error = 'discarded' THEN 'discarded' ELSE b.state END AS state
    FROM webhookd.backlog b WHERE b.outbox_id = ANY ($2) ORDER BY b.endpoint_id, b.outbox_id DESC),
apart AS MATERIALIZED (
  SELECT DISTINCT ON (s.endpoint_id) s.endpoint_id, CASE s.state WHEN 'rejected' THEN 'discarded' ELSE s.state END AS state, s.reason
    FROM webhookd.aside($2, $3, $4) s ORDER BY s.endpoint_id, s.outbox_id DESC),
became AS MATERIALIZED (
  SELECT x.endpoint_id, COALESCE(o.state, CASE WHEN t.ok THEN 'delivered' WHEN t.ok IS NOT NULL THEN 'retrying' END, p.state) AS state,
         CASE WHEN o.state IS NOT NULL THEN o.last_error WHEN t.ok IS NULL THEN p.reason END AS reason, CASE WHEN o.state IN ('waiting', 'retrying') THEN o.due END AS due
    FROM (SELECT endpoint_id FROM tried UNION SELECT endpoint_id FROM owed UNION SELECT endpoint_id FROM apart) x
    LEFT JOIN tried t USING (endpoint_id) LEFT JOIN owed o USING (endpoint_id) LEFT JOIN apart p USING (endpoint_id))
SELECT e.id, e.name, e.uid, e.source, e.spec, e.metadata, e.created_at, e.updated_at, e.disabled_at, e.paused_at,
       (SELECT v.key_id FROM webhookd.sealed v WHERE v.endpoint_id = e.id AND v.name = 'url'), (SELECT v.content FROM webhookd.sealed v WHERE v.endpoint_id = e.id AND v.name = 'url'),
       w.state, w.reason, w.due
  FROM became w JOIN webhookd.endpoint e ON e.id = w.endpoint_id AND e.removed_at IS NULL AND (e.tenant = $1 OR e.tenant = '*' AND $5::boolean)
 WHERE $6::text IS NULL OR CASE WHEN $8::boolean THEN e.name COLLATE "C" < $6 ELSE e.name COLLATE "C" > $6 END
 ORDER BY CASE WHEN $8::boolean THEN e.name COLLATE "C" END DESC, e.name COLLATE "C" LIMIT $7;

-- name: events_called
-- The events of a tenant with this id or alias, as numbers and moments; of an id there is nearly always one.
SELECT o.id, o.created_at, o.event_id
  FROM (SELECT $2::text AS id UNION SELECT a.event_id FROM webhookd.event_alias a WHERE a.tenant = $1 AND a.alias = $2) wanted
  JOIN webhookd.outbox o ON o.event_id = wanted.id
 WHERE o.tenant = $1 AND NOT o.own AND ($3::timestamptz IS NULL OR o.created_at >= $3) ORDER BY o.id DESC LIMIT 100;
