-- name: replay_begin
-- A part of the log for these endpoints once more, from the first batch that may have an event of the span, and that somebody wants it: those that have none running.
WITH log AS MATERIALIZED (
  SELECT CASE WHEN $4::timestamptz IS NULL THEN (SELECT min(b.id) FROM webhookd.batch b)
              ELSE COALESCE((SELECT min(b.id) FROM webhookd.batch b WHERE b.hi >= $4), (SELECT max(b.id) + 1 FROM webhookd.batch b)) END AS low,
         (SELECT max(b.id) + 1 FROM webhookd.batch b) AS high),
begun AS (
  INSERT INTO webhookd.replay (endpoint_id, query, rate, from_batch, next_batch, to_batch, by)
  SELECT e.id, json_strip_nulls(json_build_object('state', $2::text, 'type', $3::text, 'since', $4::timestamptz, 'until', $5::timestamptz,
                                                           'types', $8::text[], 'labels', $9::jsonb, 'code_class', $10::int))::jsonb, $6,
         l.low, l.low, l.high, $7
    FROM webhookd.endpoint e CROSS JOIN log l WHERE e.id = ANY($1::int[]) AND e.removed_at IS NULL ORDER BY e.tenant, e.name
  ON CONFLICT (endpoint_id) WHERE state = 'running' DO NOTHING RETURNING *),
noted AS (
  INSERT INTO webhookd.audit (who, action, subject, tenant, after)
  SELECT $7, 'replay', concat_ws('/', NULLIF(e.tenant, ''), e.name), e.tenant, json_build_object('replay', r.id, 'query', r.query, 'rate', r.rate)
    FROM begun r JOIN webhookd.endpoint e ON e.id = r.endpoint_id ORDER BY r.id)
SELECT id, endpoint_id FROM begun ORDER BY id;

-- name: replay_bounds
-- Where a replay would begin, and end.
SELECT CASE WHEN $1::timestamptz IS NULL THEN (SELECT min(b.id) FROM webhookd.batch b)
            ELSE COALESCE((SELECT min(b.id) FROM webhookd.batch b WHERE b.hi >= $1), (SELECT max(b.id) + 1 FROM webhookd.batch b)) END,
       (SELECT max(b.id) + 1 FROM webhookd.batch b);

-- name: replay_count
-- What a piece of it would have for an endpoint, and where the next one begins.
SELECT next_batch, next_pos, many
  FROM webhookd.replay_piece($1, json_strip_nulls(json_build_object('state', $2::text, 'type', $3::text, 'since', $4::timestamptz, 'until', $5::timestamptz))::jsonb,
                             $6, 2000, 2000, NULL, $7, $8);

-- name: replays
-- Replays, the newest first, or one of them: how far it has come, as a part of its batches, what it has that is still
-- to be tried, and what its endpoint is that keeps it waiting.
SELECT r.id, r.endpoint_id, concat_ws('/', NULLIF(e.tenant, ''), e.name), r.query, r.rate, r.by, r.created_at, r.ended_at, r.state, r.sent, r.gone,
       CASE WHEN r.to_batch > r.from_batch THEN (r.next_batch - r.from_batch)::float8 / (r.to_batch - r.from_batch) ELSE 1 END,
       (SELECT count(*) FROM webhookd.backlog b WHERE b.endpoint_id = r.endpoint_id AND b.replay = r.id AND b.state IN ('retry', 'held')),
       CASE WHEN r.state <> 'running' THEN NULL WHEN e.removed_at IS NOT NULL THEN 'removed' WHEN e.spec ->> 'active' = 'false' THEN 'inactive'
            WHEN e.disabled_at IS NOT NULL THEN 'disabled' WHEN e.paused_at IS NOT NULL THEN 'paused'
            WHEN EXISTS (SELECT FROM webhookd.parked k WHERE k.endpoint_id = r.endpoint_id AND k.to_batch IS NULL AND k.fails > 0) THEN 'failing' END
  FROM (SELECT * FROM webhookd.replay WHERE $1::bigint IS NULL OR id = $1 ORDER BY id DESC LIMIT 200) r LEFT JOIN webhookd.endpoint e ON e.id = r.endpoint_id
 ORDER BY r.id DESC;

-- name: replay_cancel
-- It hands out nothing more, and somebody wants that; what it has handed out stays owed.
WITH ended AS (
  UPDATE webhookd.replay SET state = 'cancelled', ended_at = now() WHERE id = $1 AND state = 'running' RETURNING *)
INSERT INTO webhookd.audit (who, action, subject, tenant, after)
SELECT $2, 'cancel replay', concat_ws('/', NULLIF(e.tenant, ''), e.name), e.tenant, json_build_object('replay', r.id, 'sent', r.sent)
  FROM ended r LEFT JOIN webhookd.endpoint e ON e.id = r.endpoint_id RETURNING id;

-- name: replays_running
-- Those that are not through, and whose they are.
SELECT id, endpoint_id FROM webhookd.replay WHERE state = 'running' ORDER BY id;

-- name: replay_step
-- The next piece of one.
SELECT many, more FROM webhookd.replay_step($1);

-- name: replays_of
-- Which replays an event was of, for whom, and who wanted them: by its rows, and by its attempts, each of the last one that had begun.
SELECT r.id, r.created_at, r.by, concat_ws('/', NULLIF(e.tenant, ''), e.name)
  FROM webhookd.replay r LEFT JOIN webhookd.endpoint e ON e.id = r.endpoint_id
 WHERE EXISTS (SELECT FROM webhookd.backlog b WHERE b.outbox_id = $1 AND b.endpoint_id = r.endpoint_id AND b.replay = r.id)
    OR EXISTS (SELECT FROM webhookd.attempt a WHERE a.outbox_id = $1 AND a.endpoint_id = r.endpoint_id AND a.trigger = 'replay'
                  AND r.id = (SELECT max(s.id) FROM webhookd.replay s WHERE s.endpoint_id = r.endpoint_id AND s.created_at <= a.at))
 ORDER BY r.id;

-- name: replay_tasks
-- Replays as those see them who began them: of a tenant or of all, one, or a page by their numbers; running or not, and of such states.
SELECT r.id, e.tenant, e.name, r.query, r.state, r.created_at, LEAST(now(), COALESCE(r.ended_at, GREATEST(r.paced_at, r.created_at))), r.sent, r.gone,
       CASE WHEN r.to_batch > r.from_batch THEN (r.next_batch - r.from_batch)::float8 / (r.to_batch - r.from_batch) ELSE 1 END
  FROM webhookd.replay r JOIN webhookd.endpoint e ON e.id = r.endpoint_id
 WHERE ($1::text IS NULL OR e.tenant = $1) AND ($2::bigint IS NULL OR r.id = $2)
   AND ($3::bigint IS NULL OR CASE WHEN $4::boolean THEN r.id > $3 ELSE r.id < $3 END)
   AND ($5::text[] IS NULL OR r.state = ANY ($5)) AND ($6::text[] IS NULL OR r.query ->> 'state' = ANY ($6))
 ORDER BY CASE WHEN $4::boolean THEN r.id END, r.id DESC LIMIT $7;
