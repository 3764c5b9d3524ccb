-- name: owing
-- The endpoints that owe something and when the first of it is due; a loose index scan, so its cost is the number of endpoints.
WITH RECURSIVE e(id) AS (
  (SELECT endpoint_id FROM webhookd.backlog WHERE state = 'retry' ORDER BY endpoint_id LIMIT 1)
  UNION ALL
  SELECT (SELECT b.endpoint_id FROM webhookd.backlog b WHERE b.state = 'retry' AND b.endpoint_id > e.id
           ORDER BY b.endpoint_id LIMIT 1)
    FROM e WHERE e.id IS NOT NULL)
SELECT e.id, extract(epoch FROM f.due - now())::float8 AS due_in
  FROM e CROSS JOIN LATERAL
       (SELECT b.due FROM webhookd.backlog b WHERE b.endpoint_id = e.id AND b.state = 'retry' ORDER BY b.due LIMIT 1) f
 WHERE e.id IS NOT NULL;

-- name: claim
-- Lease what is due, of each endpoint as much as it has room for; `due` becomes the end of the lease. It begins at
-- what `owing` found to be the first, `overdue` seconds ago: before that there are only dead rows, which a long snapshot keeps.
-- Each endpoint has its part of what is claimed at a time, however much others are owed; what is left is for whoever comes first.
-- Who had a row leased and died may have died of it. Of those that too many died with, one at a time, and none unless $8.
WITH wanted AS MATERIALIZED (
  SELECT w.*, LEAST(w.room, GREATEST(500 / cardinality($1::int[]), 1)) AS part
    FROM unnest($1::int[], $2::int[], $3::float8[], $4::float8[]) w(id, room, lease, overdue)),
pick AS MATERIALIZED (
  SELECT d.*, w.lease FROM (SELECT id, lease, overdue, 0 AS taken, part AS most FROM wanted UNION ALL
                            SELECT id, lease, overdue, part, room - part FROM wanted WHERE room > part) w CROSS JOIN LATERAL (
    SELECT x.endpoint_id, x.outbox_id, x.due, x.deaths + (x.owner IS NOT NULL AND x.owner <> $5 AND NOT EXISTS (
             SELECT FROM webhookd.daemon a WHERE a.id = x.owner AND a.stopped_at IS NULL AND a.beat_at > now() - $6 * interval '1 s'))::int AS deaths
      FROM webhookd.backlog x
     WHERE x.endpoint_id = w.id AND x.state = 'retry' AND x.due <= now() AND x.due >= now() - w.overdue * interval '1 s'
     ORDER BY x.due OFFSET w.taken LIMIT w.most FOR UPDATE SKIP LOCKED) d
  LIMIT 500),
suspect AS (SELECT p.endpoint_id, p.outbox_id FROM pick p WHERE p.deaths > $7 AND $8 ORDER BY p.deaths, p.due LIMIT 1)
UPDATE webhookd.backlog d SET due = now() + p.lease * interval '1 s', owner = $5, deaths = p.deaths
  FROM pick p WHERE d.endpoint_id = p.endpoint_id AND d.outbox_id = p.outbox_id
   AND (p.deaths <= $7 OR (p.endpoint_id, p.outbox_id) = (SELECT s.endpoint_id, s.outbox_id FROM suspect s))
RETURNING d.outbox_id, d.endpoint_id, d.attempts, d.outbox_at,
          extract(epoch FROM GREATEST(d.clock_from, (SELECT e.resumed_at FROM webhookd.endpoint e WHERE e.id = d.endpoint_id)))::float8 AS clock_from,
          d.asked, d.deaths, COALESCE(d.replay, 0);
