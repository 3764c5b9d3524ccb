-- name: park_ordered
-- Those that keep an order are read with a cursor from now on.
SELECT webhookd.park_ordered();

-- name: order_backlog
-- What the backlog has: keys with rows, and those without a head; once all from before the order is settled.
SELECT ready, at_batch, at_pos, last_batch, last_place, keys, headless FROM webhookd.order_backlog($1, $2, $3, $4);

-- name: promote_held
-- Heads for these keys.
SELECT webhookd.promote_held($1, $2, $3, $4);

-- name: holding
-- The endpoints for which something is held: a loose index scan, so its cost is the number of endpoints.
WITH RECURSIVE e(id) AS (
  (SELECT endpoint_id FROM webhookd.backlog WHERE state = 'held' ORDER BY endpoint_id LIMIT 1)
  UNION ALL
  SELECT (SELECT b.endpoint_id FROM webhookd.backlog b WHERE b.state = 'held' AND b.endpoint_id > e.id ORDER BY b.endpoint_id LIMIT 1)
    FROM e WHERE e.id IS NOT NULL)
SELECT id FROM e WHERE id IS NOT NULL;

-- name: held_rows
-- Of each of these keys the first that are held, in order; nothing of one that has a head elsewhere, or that waits for somebody. They stay as they are:
-- there is one sender, and whoever takes over from it finds them.
SELECT u.key, r.outbox_id, $1::int, r.attempts, r.outbox_at, extract(epoch FROM CASE r.attempts WHEN 0 THEN now() ELSE r.clock_from END)::float8,
       r.asked, r.deaths, COALESCE(r.replay, 0)
  FROM unnest($2::text[]) u(key) CROSS JOIN LATERAL (
    SELECT b.* FROM webhookd.backlog b WHERE b.endpoint_id = $1 AND b.state = 'held' AND b.ordering_key = u.key ORDER BY b.outbox_id LIMIT $3) r
 WHERE u.key NOT IN (SELECT b.ordering_key FROM webhookd.backlog b
                      WHERE b.endpoint_id = $1 AND (b.state = 'retry' OR b.state = 'held' AND NOT isfinite(b.due)) AND b.ordering_key IS NOT NULL)
 ORDER BY u.key, r.outbox_id;

-- name: held_rows_of_all
-- The same, where the order is not by key.
SELECT '', r.outbox_id, $1::int, r.attempts, r.outbox_at, extract(epoch FROM CASE r.attempts WHEN 0 THEN now() ELSE r.clock_from END)::float8,
       r.asked, r.deaths, COALESCE(r.replay, 0)
  FROM (SELECT b.* FROM webhookd.backlog b WHERE b.endpoint_id = $1 AND b.state = 'held' ORDER BY b.outbox_id LIMIT $2) r
 WHERE NOT EXISTS (SELECT FROM webhookd.backlog b WHERE b.endpoint_id = $1 AND b.state = 'retry')
   AND NOT EXISTS (SELECT FROM webhookd.backlog b WHERE b.endpoint_id = $1 AND b.state = 'held' AND NOT isfinite(b.due))
 ORDER BY r.outbox_id;

-- name: keys_with_rows
-- Those of these keys that have any row that is owed.
SELECT u.key FROM unnest($2::text[]) u(key)
 WHERE EXISTS (SELECT FROM webhookd.backlog b WHERE b.endpoint_id = $1 AND b.state = 'held' AND b.ordering_key = u.key)
    OR u.key IN (SELECT b.ordering_key FROM webhookd.backlog b WHERE b.endpoint_id = $1 AND b.state = 'retry' AND b.ordering_key IS NOT NULL);

-- name: keys_with_rows_of_all
-- The same, where the order is not by key.
SELECT '' WHERE EXISTS (SELECT FROM webhookd.backlog b WHERE b.endpoint_id = $1 AND b.state = 'held')
             OR EXISTS (SELECT FROM webhookd.backlog b WHERE b.endpoint_id = $1 AND b.state = 'retry');

-- name: release_held
-- What is held for an endpoint that keeps no order any longer goes on as any other; what waited for somebody ends.
UPDATE webhookd.backlog w SET state = CASE WHEN isfinite(w.due) THEN 'retry' ELSE 'exhausted' END, due = now()
  FROM (SELECT b.outbox_id FROM webhookd.backlog b WHERE b.endpoint_id = $1 AND b.state = 'held' ORDER BY b.outbox_id LIMIT $2) h
 WHERE w.endpoint_id = $1 AND w.outbox_id = h.outbox_id AND w.state = 'held';

-- name: unread
-- The last batch, and the lowest number that events of the tenant may have which are known and in no batch yet.
SELECT (SELECT max(b.id) FROM webhookd.batch b),
       LEAST((SELECT min(r.after_id) + 1 FROM webhookd.remainder r), (SELECT min(s.ids[1]) FROM webhookd.surplus s WHERE $1 = '*' OR s.tenant = left($1, 255)));

-- name: punctual
-- The first batch behind this one that was cut when nothing older was in none.
SELECT b.id FROM webhookd.batch b WHERE b.id > $1 AND NOT b.late ORDER BY b.id LIMIT 1;

-- name: late_events
-- What these batches hold, by number: so many behind $3 and before $4, without what stands in the first batch up to a place.
SELECT max(e.cut_at), array_agg(e.id ORDER BY e.id),
       CASE WHEN min(e.lo) < '0001-01-02 00:00:00+00' THEN '-infinity' ELSE LEAST(min(e.lo), '9999-12-30 00:00:00+00') END,
       CASE WHEN max(e.hi) > '9999-12-30 00:00:00+00' THEN 'infinity' ELSE GREATEST(max(e.hi), '0001-01-02 00:00:00+00') END, webhookd.config_now() FROM (
  SELECT b.cut_at, u.id, b.lo, b.hi FROM webhookd.batch b CROSS JOIN LATERAL unnest(b.outbox_ids) WITH ORDINALITY u(id, place)
   WHERE b.id >= $1 AND b.id <= $2 AND cardinality(b.outbox_ids) > 0 AND b.outbox_ids[cardinality(b.outbox_ids)] > $3 AND ($4::bigint IS NULL OR b.outbox_ids[1] < $4)
     AND u.id > $3 AND ($4::bigint IS NULL OR u.id < $4) AND NOT (b.id = $1 AND u.place <= $5)
   ORDER BY u.id LIMIT $6) e;

-- name: lower_numbers
-- Of the first of these batches that has events up to $3, these.
SELECT b.id, b.cut_at, ARRAY(SELECT u.id FROM unnest(b.outbox_ids) u(id) WHERE u.id <= $3 ORDER BY u.id),
       CASE WHEN b.lo < '0001-01-02 00:00:00+00' THEN '-infinity' ELSE LEAST(b.lo, '9999-12-30 00:00:00+00') END,
       CASE WHEN b.hi > '9999-12-30 00:00:00+00' THEN 'infinity' ELSE GREATEST(b.hi, '0001-01-02 00:00:00+00') END, b.late, webhookd.config_now()
  FROM webhookd.batch b WHERE b.id >= $1 AND b.id <= $2 AND cardinality(b.outbox_ids) > 0 AND b.outbox_ids[1] <= $3 ORDER BY b.id LIMIT 1;
