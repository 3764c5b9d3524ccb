-- name: discards
-- All there are, and whether each has been looked for in the whole backlog.
SELECT id, type, tenant, endpoint_id, since, until, replays, done_at IS NOT NULL FROM webhookd.discard ORDER BY id;

-- name: discards_mark
-- Changes when one is added, or goes; and how many are to be looked for in the backlog.
SELECT COALESCE(max(id), 0), count(*), count(*) FILTER (WHERE done_at IS NULL) FROM webhookd.discard;

-- name: discard_step
-- End what the next rows of the backlog have of one.
SELECT many, more FROM webhookd.discard_step($1, 5000);

-- name: discard
-- Nobody wants these any longer, says somebody.
WITH said AS (
  INSERT INTO webhookd.discard (type, tenant, endpoint_id, since, until, replays, endpoints, by)
  SELECT $1, $2, $3, COALESCE($4::timestamptz, '1970-01-01 00:00:00+00'), LEAST($5::timestamptz, now()), COALESCE((SELECT max(r.id) FROM webhookd.replay r), 0),
         COALESCE((SELECT max(e.id) FROM webhookd.endpoint e), 0), $6
  RETURNING *),
noted AS (
  INSERT INTO webhookd.audit (who, action, subject, tenant, after)
  SELECT $6, 'discard', NULLIF(concat_ws('/', NULLIF(e.tenant, ''), e.name), ''), COALESCE(s.tenant, e.tenant),
         json_strip_nulls(json_build_object('discard', s.id, 'type', s.type, 'tenant', s.tenant, 'since', $4::timestamptz, 'until', s.until))
    FROM said s LEFT JOIN webhookd.endpoint e ON e.id = s.endpoint_id)
SELECT id FROM said;

-- name: discard_progress
-- How many rows of the backlog one has ended, and whether it has been looked through.
SELECT ended, passes > 0 FROM webhookd.discard WHERE id = $1;

-- name: discard_count
-- What there is of it: events in all, those that are in no batch which is done, deliveries of the backlog that are still owed, and of the first events
-- those that stand before a cursor.
WITH event AS MATERIALIZED (
  SELECT o.id, o.created_at FROM webhookd.outbox o
   WHERE o.created_at >= COALESCE($4::timestamptz, '1970-01-01 00:00:00+00') AND o.created_at <= LEAST($5::timestamptz, now()) AND ($2::text IS NULL OR o.tenant = $2)
     AND ($1::text IS NULL OR o.type = $1 OR $1 = '*' AND NOT starts_with(o.type, 'webhookd.') OR $1 LIKE '%.*' AND starts_with(o.type, left($1, -1)))),
first AS MATERIALIZED (SELECT e.* FROM event e WHERE EXISTS (SELECT FROM webhookd.parked k WHERE k.reason <> 'disabled') ORDER BY e.id LIMIT 20000),
done AS MATERIALIZED (
  SELECT u.id FROM webhookd.batch b CROSS JOIN LATERAL unnest(b.outbox_ids) u(id)
   WHERE b.done_at IS NOT NULL AND b.hi >= (SELECT min(e.created_at) FROM event e) AND b.lo <= (SELECT max(e.created_at) FROM event e))
SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM event e WHERE NOT EXISTS (SELECT FROM done d WHERE d.id = e.id)),
       (SELECT count(*) FROM webhookd.backlog b JOIN event e ON e.id = b.outbox_id WHERE b.state IN ('retry', 'held') AND ($3::int IS NULL OR b.endpoint_id = $3)),
       (SELECT count(*) FROM webhookd.aside((SELECT array_agg(f.id) FROM first f), (SELECT min(f.created_at) FROM first f), (SELECT max(f.created_at) FROM first f), $3) a
         WHERE a.state = 'parked'),
       (SELECT count(*) > 20000 FROM event) AND EXISTS (SELECT FROM webhookd.parked k WHERE k.reason <> 'disabled');

-- name: discards_of
-- Who discarded this event, when, and for whom.
SELECT d.created_at, d.by, CASE WHEN d.endpoint_id IS NOT NULL THEN concat_ws('/', NULLIF(e.tenant, ''), e.name) END
  FROM webhookd.discard d CROSS JOIN webhookd.outbox o LEFT JOIN webhookd.endpoint e ON e.id = d.endpoint_id
 WHERE o.id = $1 AND o.created_at >= d.since AND o.created_at <= d.until AND (d.tenant IS NULL OR d.tenant = o.tenant)
   AND (d.type IS NULL OR d.type = o.type OR d.type = '*' AND NOT starts_with(o.type, 'webhookd.') OR d.type LIKE '%.*' AND starts_with(o.type, left(d.type, -1)))
 ORDER BY d.id;
