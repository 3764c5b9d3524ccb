-- Listings: a page at a time, newest first, each statement within a window that the caller widens. So no page reads a table from
-- one end to the other, and none needs an index of its own.

-- name: list_now
-- The clock that the ages of a listing are counted from.
SELECT now();

-- name: list_ids
-- The newest event, and one that is not newer than any since a moment: partitions that end before it are not looked at.
SELECT COALESCE((SELECT max(id) FROM webhookd.outbox), 0),
       COALESCE((SELECT min(id) FROM webhookd.outbox WHERE created_at >= date_trunc('day', $1::timestamptz, 'UTC')), 9e18)::bigint;

-- name: list_events
-- Events and what became of each, counted by endpoints. Only one without any delivery has to be looked for in the batches.
WITH page AS MATERIALIZED (
  SELECT id, event_id, created_at, type, tenant, size, deliver_after, ordering_key FROM webhookd.outbox
   WHERE id >= $1 AND id < $2 AND ($3::timestamptz IS NULL OR created_at >= $3) AND ($4::text IS NULL OR type ~ $4)
     AND ($5::text IS NULL OR tenant = $5) AND ($6::text IS NULL OR ordering_key = $6)
   ORDER BY id DESC LIMIT $7),
aside AS MATERIALIZED (
  SELECT a.outbox_id, count(*) FILTER (WHERE a.state = 'parked') AS parked, count(*) FILTER (WHERE a.state = 'missed') AS missed,
         count(*) FILTER (WHERE a.state = 'rejected') AS rejected
    FROM webhookd.aside((SELECT array_agg(id) FROM page), (SELECT min(created_at) FROM page), (SELECT max(created_at) FROM page)) a GROUP BY a.outbox_id)
SELECT e.id, e.event_id, LEAST(GREATEST(e.created_at, '0001-01-02 00:00:00+00'), '9999-12-30 00:00:00+00'), e.type, e.tenant, e.size, d.delivered, b.retrying, b.held, COALESCE(s.parked, 0), b.exhausted, b.rejected + COALESCE(s.rejected, 0),
       COALESCE(s.missed, 0),
       CASE WHEN EXISTS (SELECT FROM webhookd.unreadable u WHERE u.outbox_id = e.id) THEN 'unreadable' WHEN d.delivered + b.rows > 0 OR s.outbox_id IS NOT NULL THEN NULL
            WHEN EXISTS (SELECT FROM webhookd.scheduled s WHERE s.due = e.deliver_after AND s.outbox_id = e.id) THEN 'scheduled'
            ELSE COALESCE((SELECT CASE WHEN c.done_at IS NULL THEN 'sending'
                                         WHEN EXISTS (SELECT FROM webhookd.missed m WHERE c.id >= m.from_batch AND c.id < m.to_batch AND m.reason IN ('discarded', 'retention'))
                                           THEN 'missed' ELSE 'unmatched' END FROM webhookd.batch c
                            WHERE c.hi >= e.created_at AND c.lo <= e.created_at AND e.id = ANY (c.outbox_ids)
                            ORDER BY c.hi LIMIT 1), 'waiting') END,
       e.ordering_key
  FROM page e
  LEFT JOIN aside s ON s.outbox_id = e.id
 CROSS JOIN LATERAL (SELECT count(DISTINCT a.endpoint_id) AS delivered FROM webhookd.attempt a
                      WHERE a.outbox_id = e.id AND a.ok AND a.at >= e.created_at - interval '1 min') d
 CROSS JOIN LATERAL (SELECT count(*) AS rows,
                            count(*) FILTER (WHERE state = 'retry') AS retrying, count(*) FILTER (WHERE state = 'held') AS held,
                            count(*) FILTER (WHERE state = 'exhausted') AS exhausted,
                            count(*) FILTER (WHERE state = 'rejected') AS rejected
                       FROM webhookd.backlog w WHERE w.outbox_id = e.id) b
 ORDER BY e.id DESC;

-- name: list_event_ids
-- The events of an id, so many at most; it is nearly always one.
SELECT id FROM webhookd.outbox WHERE event_id = $1 ORDER BY id DESC LIMIT 100;

-- name: list_heads
-- What a listing shows of the events it mentions; those that are past retention are missing.
SELECT id, event_id, type, LEAST(GREATEST(created_at, '0001-01-02 00:00:00+00'), '9999-12-30 00:00:00+00') FROM webhookd.outbox WHERE id = ANY($1::bigint[]);

-- name: list_owed
-- Deliveries that have a row in the backlog; the next attempt where its endpoint is sent to.
SELECT b.outbox_id, b.endpoint_id, CASE b.state WHEN 'retry' THEN 'retrying' ELSE b.state END, b.attempts, b.last_code, b.last_error,
       CASE WHEN b.state = 'retry' AND NOT EXISTS (SELECT FROM webhookd.endpoint e WHERE e.id = b.endpoint_id AND (e.removed_at IS NOT NULL
              OR e.paused_at IS NOT NULL OR e.disabled_at IS NOT NULL OR e.spec ->> 'active' = 'false')) THEN b.due END,
       (SELECT max(a.at) FROM webhookd.attempt a WHERE a.outbox_id = b.outbox_id AND a.endpoint_id = b.endpoint_id)
  FROM (SELECT * FROM webhookd.backlog
         WHERE outbox_id >= $1 AND outbox_id <= $2 AND (outbox_id, endpoint_id) < ($2, $3::bigint)
           AND ($4::timestamptz IS NULL OR outbox_at >= $4)
           AND ($5::int IS NULL OR endpoint_id = $5) AND ($6::bigint[] IS NULL OR outbox_id = ANY($6)) AND state = ANY($8::text[])
         ORDER BY outbox_id DESC, endpoint_id DESC LIMIT $7) b
 ORDER BY 1 DESC, 2 DESC;

-- name: list_aside
-- Deliveries that have no row, since they stand in the log before a cursor, or were missed.
WITH page AS MATERIALIZED (
  SELECT id, created_at FROM webhookd.outbox
   WHERE EXISTS (SELECT FROM webhookd.parked UNION ALL SELECT FROM webhookd.missed UNION ALL SELECT FROM webhookd.discard)
     AND id >= $1 AND id <= $2 AND ($4::timestamptz IS NULL OR created_at >= $4) AND ($6::bigint[] IS NULL OR id = ANY($6)))
SELECT a.outbox_id, a.endpoint_id, a.state, 0, NULL::int, a.reason, NULL::timestamptz, NULL::timestamptz
  FROM webhookd.aside((SELECT array_agg(id) FROM page), (SELECT min(created_at) FROM page), (SELECT max(created_at) FROM page), $5::int) a
 WHERE (a.outbox_id, a.endpoint_id) < ($2, $3::bigint) AND a.state = ANY($8::text[])
 ORDER BY 1 DESC, 2 DESC LIMIT $7;

-- name: list_tried
-- Deliveries that were attempted; only those that ended well when $8. The backlog knows better than the last attempt.
SELECT t.outbox_id, t.endpoint_id,
       CASE WHEN b.state = 'retry' THEN 'retrying' WHEN b.state IS NOT NULL THEN b.state WHEN t.ok THEN 'delivered' ELSE 'retrying' END,
       COALESCE(b.attempts, t.attempts), CASE WHEN b.state IS NULL THEN t.code ELSE b.last_code END,
       CASE WHEN b.state IS NULL THEN t.error ELSE b.last_error END,
       CASE WHEN b.state = 'retry' AND NOT EXISTS (SELECT FROM webhookd.endpoint e WHERE e.id = t.endpoint_id AND (e.removed_at IS NOT NULL
              OR e.paused_at IS NOT NULL OR e.disabled_at IS NOT NULL OR e.spec ->> 'active' = 'false')) THEN b.due END, t.at
  FROM (SELECT a.outbox_id, a.endpoint_id, bool_or(a.ok) AS ok, max(a.attempt) AS attempts, max(a.at) AS at,
               (array_agg(a.code ORDER BY a.at DESC))[1] AS code, (array_agg(a.error ORDER BY a.at DESC))[1] AS error
          FROM webhookd.attempt a
         WHERE a.outbox_id >= $1 AND a.outbox_id <= $2 AND (a.outbox_id, a.endpoint_id) < ($2, $3::bigint)
           AND ($4::timestamptz IS NULL OR a.at >= $4 - interval '1 min'
                AND EXISTS (SELECT FROM webhookd.outbox o WHERE o.id = a.outbox_id AND o.created_at >= $4))
           AND ($5::int IS NULL OR a.endpoint_id = $5) AND ($6::bigint[] IS NULL OR a.outbox_id = ANY($6)) AND (a.ok OR a.trigger IS DISTINCT FROM 'resend')
         GROUP BY a.outbox_id, a.endpoint_id) t
  LEFT JOIN LATERAL (SELECT * FROM webhookd.backlog w
                      WHERE w.endpoint_id = t.endpoint_id AND w.outbox_id = t.outbox_id OFFSET 0) b ON true
 WHERE NOT $8::bool OR (t.ok AND b.state IS NULL)
 ORDER BY t.outbox_id DESC, t.endpoint_id DESC LIMIT $7;

-- name: list_attempts
-- Attempts of these endpoints. The index of each leads to its newest; there is none over all of them by time alone.
SELECT a.at, a.outbox_id, a.endpoint_id, a.attempt, a.ok, a.code, a.ms, a.error, CASE WHEN $8::bool THEN a.response END, a.trigger
  FROM unnest($9::int[]) p(id) CROSS JOIN LATERAL (
    SELECT * FROM webhookd.attempt t
     WHERE t.endpoint_id = p.id AND t.at >= $1 AND t.at <= $2
       AND (t.at, t.outbox_id, t.endpoint_id, t.attempt) < ($2, $3::bigint, $4::bigint, $5::bigint) AND (NOT $6::bool OR NOT t.ok)
     ORDER BY t.at DESC, t.outbox_id DESC, t.attempt DESC LIMIT $7) a
 ORDER BY a.at DESC, a.outbox_id DESC, a.endpoint_id DESC, a.attempt DESC LIMIT $7;

-- name: list_attempts_rare
-- The same where few are expected: those of an event, and failed ones of hours in which most went well.
SELECT t.at, t.outbox_id, t.endpoint_id, t.attempt, t.ok, t.code, t.ms, t.error, CASE WHEN $8::bool THEN t.response END, t.trigger
  FROM webhookd.attempt t
 WHERE ($10::bigint[] IS NULL OR t.outbox_id = ANY($10)) AND t.at >= $1 AND t.at <= $2
   AND (t.at, t.outbox_id, t.endpoint_id, t.attempt) < ($2, $3::bigint, $4::bigint, $5::bigint) AND (NOT $6::bool OR NOT t.ok)
   AND t.endpoint_id = ANY($9::int[])
 ORDER BY t.at DESC, t.outbox_id DESC, t.endpoint_id DESC, t.attempt DESC LIMIT $7;

-- name: list_recorded
-- Attempts that a snapshot did not see, so each is found once, in whatever order they were recorded, and how many there are: the newest so many of
-- those that began within some seconds. What wrote a row is known by the lower half of its transaction's number, and is one of the last two billion;
-- that of a savepoint would not do, since a snapshot does not list it, and attempts are never written in one.
SELECT a.at, a.outbox_id, a.endpoint_id, a.attempt, a.ok, a.code, a.ms, a.error, CASE WHEN $3::bool THEN a.response END, a.trigger, count(*) OVER ()
  FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next OFFSET 0) s
 CROSS JOIN webhookd.endpoint p CROSS JOIN LATERAL (
    SELECT * FROM webhookd.attempt t
     WHERE t.endpoint_id = p.id AND t.at >= now() - make_interval(secs => $4) AND t.at <= now() + interval '1 day'
       AND NOT pg_visible_in_snapshot((s.next - ((s.next - t.xmin::text::bigint) & 4294967295))::text::xid8, $1::text::pg_snapshot)) a
 WHERE $2::int IS NULL OR p.id = $2
 ORDER BY a.at DESC, a.outbox_id DESC, a.endpoint_id DESC, a.attempt DESC LIMIT $5;

-- name: list_recorded_failed
-- The same of those that failed, which have an index.
SELECT t.at, t.outbox_id, t.endpoint_id, t.attempt, t.ok, t.code, t.ms, t.error, CASE WHEN $3::bool THEN t.response END, t.trigger, count(*) OVER ()
  FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next OFFSET 0) s CROSS JOIN webhookd.attempt t
 WHERE NOT t.ok AND t.at >= now() - make_interval(secs => $4) AND t.at <= now() + interval '1 day' AND ($2::int IS NULL OR t.endpoint_id = $2)
   AND NOT pg_visible_in_snapshot((s.next - ((s.next - t.xmin::text::bigint) & 4294967295))::text::xid8, $1::text::pg_snapshot)
 ORDER BY t.at DESC, t.outbox_id DESC, t.endpoint_id DESC, t.attempt DESC LIMIT $5;

-- name: list_snapshot
-- What this transaction sees, for `list_recorded`.
SELECT pg_current_snapshot()::text;

-- name: list_names
-- Every endpoint there was, as listings call it.
SELECT id, tenant, name FROM webhookd.endpoint;

-- name: list_endpoints
-- Endpoints, or one of them, with their part of the backlog and what they answered last.
SELECT p.id, p.tenant, p.name, p.spec, p.removed_at, p.paused_at, p.disabled_at, p.disabled_why, k.reason, k.since, k.owner,
       COALESCE(k.fails, 0), CASE WHEN k.fails > 0 THEN k.retry_at END, c.cut_at,
       COALESCE(b.waiting, 0), COALESCE(b.retrying, 0), COALESCE(b.held, 0), COALESCE(b.exhausted, 0), COALESCE(b.rejected, 0),
       COALESCE(s.parked, 0), COALESCE(s.parked_more, false), COALESCE(s.missed, 0), COALESCE(s.missed_more, false), m.reasons, b.oldest,
       l.at, l.ok, l.code, l.error, l.ms
  FROM webhookd.endpoint p
  LEFT JOIN webhookd.parked k ON k.endpoint_id = p.id AND k.to_batch IS NULL
  LEFT JOIN webhookd.batch c ON c.id = k.next_batch
  LEFT JOIN (SELECT endpoint_id,
                    count(*) FILTER (WHERE state = 'retry' AND attempts = 0 AND last_error IS NULL) AS waiting,
                    count(*) FILTER (WHERE state = 'retry' AND (attempts > 0 OR last_error IS NOT NULL)) AS retrying,
                    count(*) FILTER (WHERE state = 'held') AS held,
                    count(*) FILTER (WHERE state = 'exhausted') AS exhausted,
                    count(*) FILTER (WHERE state = 'rejected') AS rejected,
                    min(outbox_at) FILTER (WHERE state IN ('retry', 'held')) AS oldest
               FROM webhookd.backlog GROUP BY endpoint_id) b ON b.endpoint_id = p.id
  LEFT JOIN webhookd.count_aside($2, $1) s ON s.endpoint_id = p.id
  LEFT JOIN LATERAL (SELECT array_agg(DISTINCT m.reason ORDER BY m.reason) AS reasons FROM webhookd.missed m WHERE m.endpoint_id = p.id) m ON true
  LEFT JOIN LATERAL (SELECT a.at, a.ok, a.code, a.error, a.ms FROM webhookd.attempt a
                      WHERE a.endpoint_id = p.id ORDER BY a.at DESC LIMIT 1) l ON true
 WHERE $1::int IS NULL OR p.id = $1
 ORDER BY p.tenant, p.name;
