-- name: takers
-- Of these endpoints, whether they count still, the seconds that a request may take, and how many live daemons have them: one that does not tell what it
-- has may have any.
SELECT e.id, e.removed_at IS NULL, COALESCE((e.spec ->> 'timeout')::float8, 0),
       (SELECT count(*) FROM webhookd.daemon d WHERE d.stopped_at IS NULL AND d.beat_at > now() - $2 * interval '1 s'
           AND (d.endpoint_ids IS NULL OR e.id = ANY (d.endpoint_ids || d.inactive_ids)
                OR e.source = 'api' AND d.key_ids @> (ARRAY(SELECT s.key_id FROM webhookd.secret s WHERE s.endpoint_id = e.id AND (s.until IS NULL OR s.until > now()))
                                                      || ARRAY(SELECT v.key_id FROM webhookd.sealed v WHERE v.endpoint_id = e.id))))
  FROM webhookd.endpoint e WHERE e.id = ANY($1::int[]);

-- name: resend
-- Events for endpoints, again, once; and that somebody wants it.
WITH asked AS (
  INSERT INTO webhookd.shot (kind, endpoint_id, outbox_id, outbox_at, by, start_by)
  SELECT 'resend', u.p, o.id, o.created_at, $4, now() + $5 * interval '1 s'
    FROM unnest($1::int[], $2::bigint[], $3::timestamptz[]) u(p, o, at) JOIN webhookd.outbox o ON o.id = u.o AND o.created_at = u.at
   ORDER BY o.id, u.p RETURNING id, endpoint_id, outbox_id),
noted AS (
  INSERT INTO webhookd.audit (who, action, subject, tenant, after)
  SELECT $4, 'resend', o.event_id, o.tenant, json_build_object('endpoint', concat_ws('/', NULLIF(e.tenant, ''), e.name), 'shot', a.id)
    FROM asked a JOIN webhookd.endpoint e ON e.id = a.endpoint_id
    JOIN unnest($2::bigint[], $3::timestamptz[]) u(o, at) ON u.o = a.outbox_id JOIN webhookd.outbox o ON o.id = u.o AND o.created_at = u.at
   GROUP BY a.id, o.event_id, o.tenant, e.tenant, e.name ORDER BY a.id)
SELECT id, endpoint_id, outbox_id FROM asked ORDER BY id;

-- name: test
-- Examples for an endpoint, once; and that somebody wants it.
WITH asked AS (
  INSERT INTO webhookd.shot (kind, endpoint_id, event_id, type, tenant, payload, by, start_by)
  SELECT 'test', e.id, u.event_id, u.type, CASE e.tenant WHEN '*' THEN '' ELSE e.tenant END, u.payload, $5, now() + $6 * interval '1 s'
    FROM webhookd.endpoint e CROSS JOIN unnest($2::text[], $3::text[], $4::json[]) WITH ORDINALITY u(event_id, type, payload, n)
   WHERE e.id = $1 ORDER BY u.n RETURNING id, type),
noted AS (
  INSERT INTO webhookd.audit (who, action, subject, tenant, after)
  SELECT $5, 'test', concat_ws('/', NULLIF(e.tenant, ''), e.name), e.tenant, (SELECT json_build_object('events', json_agg(a.type ORDER BY a.id)) FROM asked a)
    FROM webhookd.endpoint e WHERE e.id = $1)
SELECT id, type, now() FROM asked ORDER BY id;

-- name: ended_shots
-- What came of them, of those that have ended.
SELECT id, endpoint_id, ok, code, ms, error, owner, request, response FROM webhookd.shot WHERE id = ANY($1::bigint[]) AND done_at IS NOT NULL ORDER BY id;

-- name: shots_of
-- What was resent of an event.
SELECT s.created_at, s.by, concat_ws('/', NULLIF(e.tenant, ''), e.name), s.ok, s.code, s.error
  FROM webhookd.shot s LEFT JOIN webhookd.endpoint e ON e.id = s.endpoint_id WHERE s.outbox_id = $1 ORDER BY s.id;

-- name: open_shots
-- Those that have not ended, for how many seconds they have been there, whether somebody has them, and whether their time is over.
-- Of one endpoint some at a time, so that many of one keep nobody else's from being looked at.
SELECT id, endpoint_id, extract(epoch FROM now() - created_at)::float8, owner IS NOT NULL, COALESCE(ends_at, start_by) < now()
  FROM (SELECT *, row_number() OVER (PARTITION BY endpoint_id ORDER BY id) AS n FROM webhookd.shot WHERE done_at IS NULL) s
 WHERE n <= 20 OR COALESCE(ends_at, start_by) < now() ORDER BY n, id LIMIT 1000;

-- name: shots_waiting
-- How many of an endpoint have not ended.
SELECT count(*) FROM webhookd.shot WHERE done_at IS NULL AND endpoint_id = $1;

-- name: end_shots
-- Nobody took them in time, or whoever did has never said what came of it.
UPDATE webhookd.shot SET done_at = now(), ok = false, error = CASE WHEN owner IS NULL THEN 'not_taken' ELSE 'lost' END
 WHERE done_at IS NULL AND COALESCE(ends_at, start_by) < now();

-- name: claim_shots
-- From now on they are ours, and nobody else ever sends them.
WITH pick AS MATERIALIZED (
  SELECT s.id, u.lease FROM unnest($1::bigint[], $2::float8[]) u(id, lease) JOIN webhookd.shot s ON s.id = u.id
   WHERE s.done_at IS NULL AND s.owner IS NULL AND s.start_by > now() ORDER BY s.id FOR UPDATE OF s SKIP LOCKED)
UPDATE webhookd.shot s SET owner = $3, ends_at = s.start_by + p.lease * interval '1 s' FROM pick p WHERE s.id = p.id
RETURNING s.id, s.kind, s.endpoint_id, s.outbox_id, s.outbox_at, s.event_id, s.type, s.tenant, s.payload, s.created_at,
          extract(epoch FROM s.start_by - now())::float8,
          COALESCE(GREATEST((SELECT max(a.attempt) FROM webhookd.attempt a WHERE a.outbox_id = s.outbox_id AND a.endpoint_id = s.endpoint_id),
                            (SELECT b.attempts FROM webhookd.backlog b WHERE b.outbox_id = s.outbox_id AND b.endpoint_id = s.endpoint_id)), 0)::int;

-- name: leave_shot
-- It has not been sent, and anybody may.
UPDATE webhookd.shot SET owner = NULL, ends_at = NULL WHERE id = $1 AND owner = $2 AND done_at IS NULL;

-- name: shot_done
-- What came of it. A resend is an attempt, and one that was delivered ends what was to be tried again; if this is written twice, since its reply was
-- lost, there is still one attempt.
WITH mine AS (
  UPDATE webhookd.shot s
     SET done_at = now(), at = $3, ok = $4, code = $5, ms = $6, error = $7, request = $8, response = CASE s.kind WHEN 'test' THEN $9::bytea END
   WHERE s.id = $1 AND s.owner = $2 AND (s.done_at IS NULL OR s.error = 'lost') RETURNING s.kind, s.endpoint_id, s.outbox_id),
logged AS (
  INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok, code, ms, error, response, trigger)
  SELECT $3, m.outbox_id, m.endpoint_id, $10, $4, $5, $6, $7, $9, m.kind FROM mine m WHERE m.kind = 'resend' AND $3::timestamptz IS NOT NULL)
DELETE FROM webhookd.backlog b USING mine m WHERE m.kind = 'resend' AND $4 AND b.endpoint_id = m.endpoint_id AND b.outbox_id = m.outbox_id;

-- name: settle_shot
-- A failure that was written while this was delivered brings nothing back.
DELETE FROM webhookd.backlog b USING webhookd.shot s
 WHERE s.id = $1 AND s.kind = 'resend' AND s.ok AND b.endpoint_id = s.endpoint_id AND b.outbox_id = s.outbox_id AND b.replay IS NULL;

-- name: test_shot
-- A test of a tenant, by the id that its event has.
SELECT event_id, type, created_at, payload FROM webhookd.shot WHERE event_id = $2 AND kind = 'test' AND tenant = $1 ORDER BY id DESC LIMIT 1;

-- name: test_shots
-- All tests that were wanted at once with this one, the first of them.
SELECT s.id, s.type, f.created_at, e.tenant, e.name
  FROM webhookd.shot f JOIN webhookd.endpoint e ON e.id = f.endpoint_id
  JOIN webhookd.shot s ON s.id >= f.id AND s.id < f.id + 10000 AND s.endpoint_id = f.endpoint_id AND s.kind = f.kind AND s.created_at = f.created_at AND s.by = f.by
 WHERE f.id = $1 AND f.kind = 'test' ORDER BY s.id;

-- name: resend_shot
-- A resend, and what came of it.
SELECT CASE e.tenant WHEN '*' THEN o.tenant ELSE e.tenant END, e.name, o.event_id, COALESCE(s.done_at, s.created_at), s.ok, s.code, s.error
  FROM webhookd.shot s JOIN webhookd.endpoint e ON e.id = s.endpoint_id LEFT JOIN webhookd.outbox o ON o.id = s.outbox_id AND o.created_at = s.outbox_at
 WHERE s.id = $1 AND s.kind = 'resend';
