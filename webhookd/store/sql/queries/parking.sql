-- name: parked
-- Which endpoints are parked where, and how often that has changed: one snapshot.
SELECT v.parked, p.endpoint_id, p.from_batch, p.to_batch, p.next_batch, p.next_pos, p.reason, p.owner, p.epoch, p.fails,
       extract(epoch FROM p.retry_at - now())::float8 AS retry_in, e.paused_at IS NOT NULL AS paused, e.disabled_at IS NOT NULL AS disabled,
       COALESCE(extract(epoch FROM e.resumed_at), 0)::float8 AS resumed_at,
       e.removed_at IS NOT NULL OR e.spec ->> 'active' = 'false' AS idle, p.deaths
  FROM webhookd.config_version v
  LEFT JOIN (webhookd.parked p JOIN webhookd.endpoint e ON e.id = p.endpoint_id) ON true;

-- name: parked_version
-- Has any of that changed?
SELECT parked FROM webhookd.config_version;

-- name: park
-- These are read with a cursor from now on, and we send to them.
SELECT webhookd.park($1, $2, $3, $4, $5);

-- name: unpark
-- These are live again.
SELECT id, until FROM webhookd.unpark($1, $2, $3);

-- name: unpark_idle
-- What is not owed anything new needs no cursor for it.
SELECT id FROM webhookd.unpark($1);

-- name: disable
-- The receiver has said that it is gone, since $3 and so since it was last resumed, whoever of us knows of that.
SELECT webhookd.disable_since(e.id, $2, to_timestamp($3::float8)) FROM webhookd.endpoint e WHERE e.id = $1;

-- name: pause
-- An operator's word.
SELECT webhookd.pause($1) FROM (SELECT set_config('webhookd.who', $2, true) OFFSET 0) w;

-- name: resume
-- An operator takes it back.
SELECT webhookd.resume($1) FROM (SELECT set_config('webhookd.who', $2, true) OFFSET 0) w;

-- name: enable
-- A person takes that of a receiver back.
SELECT webhookd.enable($1) FROM (SELECT set_config('webhookd.who', $2, true) OFFSET 0) w;

-- name: disable_failing
-- It has failed for too long, if that is so.
SELECT webhookd.disable_failing($1, $2, $3);

-- name: take_parked
-- Cursors without a daemon, or of one that stopped or is dead, which we judge as with batches. All of an endpoint have the same daemon, its only sender:
-- who has the lock of the first takes all, and who comes later finds it taken. An owner is looked at again once its row is locked, and counted if it died.
WITH open AS MATERIALIZED (
  SELECT p.endpoint_id, p.from_batch, p.owner FROM webhookd.parked p
   WHERE p.endpoint_id = ANY($2::int[]) AND p.reason <> 'disabled' AND (p.to_batch IS NULL OR p.next_batch < p.to_batch)),
dead AS MATERIALIZED (
  SELECT o.owner FROM (SELECT DISTINCT owner FROM open) o
   WHERE EXISTS (SELECT FROM webhookd.daemon d WHERE d.id = o.owner AND d.stopped_at IS NOT NULL)
      OR now() < to_timestamp($3::float8)
         AND NOT EXISTS (SELECT FROM webhookd.daemon d WHERE d.id = o.owner AND d.stopped_at IS NULL AND d.beat_at > now() - $4 * interval '1 s')),
free AS MATERIALIZED (
  SELECT p.endpoint_id FROM (SELECT endpoint_id, min(from_batch) AS from_batch FROM open GROUP BY endpoint_id) f
    JOIN webhookd.parked p USING (endpoint_id, from_batch)
   WHERE (p.owner IS NULL OR p.owner = $1 OR p.owner IN (SELECT owner FROM dead))
     AND NOT EXISTS (SELECT FROM open o WHERE o.endpoint_id = p.endpoint_id AND o.owner <> $1 AND o.owner NOT IN (SELECT owner FROM dead WHERE owner IS NOT NULL))
   ORDER BY p.endpoint_id FOR UPDATE OF p SKIP LOCKED),
taken AS (
  UPDATE webhookd.parked p SET owner = $1, epoch = epoch + 1, deaths = LEAST(deaths + (p.owner IS NOT NULL)::int, 32767) FROM free f
   WHERE p.endpoint_id = f.endpoint_id AND p.reason <> 'disabled' AND (p.to_batch IS NULL OR p.next_batch < p.to_batch)
     AND (p.owner IS NULL OR p.owner <> $1 AND p.owner IN (SELECT owner FROM dead)) RETURNING p.endpoint_id),
told AS (UPDATE webhookd.config_version SET parked = parked + 1 WHERE EXISTS (SELECT FROM taken))
SELECT count(*) FROM taken;

-- name: let_go_of
-- What our files do not have any longer is free for those that have it.
WITH free AS (UPDATE webhookd.parked SET owner = NULL WHERE owner = $1 AND endpoint_id = ANY($2::int[]) RETURNING endpoint_id)
UPDATE webhookd.config_version SET parked = parked + 1 WHERE EXISTS (SELECT FROM free);

-- name: let_go
-- What we had is free for the others at once.
WITH free AS (UPDATE webhookd.parked SET owner = NULL WHERE owner = $1 RETURNING endpoint_id)
UPDATE webhookd.config_version SET parked = parked + 1 WHERE EXISTS (SELECT FROM free);

-- name: breakers
-- How often each has failed and how long it is left alone, so that whoever takes it over knows. `park` tells of one that is parked since it fails; here it
-- is one that was parked already, for another reason or since it has failed before.
WITH noted AS (
  UPDATE webhookd.parked p SET fails = u.fails, retry_at = now() + u.wait * interval '1 s'
    FROM unnest($1::int[], $2::int[], $3::float8[]) u(endpoint_id, fails, wait), webhookd.parked before
   WHERE p.endpoint_id = u.endpoint_id AND p.to_batch IS NULL AND p.owner = $4
     AND before.endpoint_id = p.endpoint_id AND before.from_batch = p.from_batch
  RETURNING p.endpoint_id, before.fails AS failed, p.fails)
SELECT webhookd.tell(CASE fails WHEN 0 THEN 'endpoint.recovered' ELSE 'endpoint.failing' END, endpoint_id) FROM noted WHERE (failed = 0) <> (fails = 0);

-- name: give_up
-- What its time has run out behind endpoints that fail.
SELECT u.id, g.deliveries, g.ranges, g.begun FROM unnest($1::int[], $3::int[], $4::float8[]) u(id, epoch, before)
 CROSS JOIN LATERAL (SELECT a.deliveries, a.ranges, a.begun FROM webhookd.give_up_apart(u.id, $2, u.epoch, to_timestamp(u.before)) a OFFSET 0) g
 WHERE g.deliveries + g.ranges > 0;

-- name: forget_parked
-- Cursors that have come to their end, once no batch is open that one of us may ask them about.
WITH gone AS (
  DELETE FROM webhookd.parked WHERE to_batch IS NOT NULL AND next_batch >= to_batch AND to_batch <= (SELECT max(low) + 1 FROM webhookd.daemon)
  RETURNING endpoint_id)
UPDATE webhookd.config_version SET parked = parked + 1 WHERE EXISTS (SELECT FROM gone);

-- name: owing_little
-- Of these endpoints, those that have little in the backlog that is due, whoever put it there. It is counted no further than that.
SELECT u.id FROM unnest($1::int[]) u(id) CROSS JOIN LATERAL (
  SELECT count(*) AS rows FROM (
    SELECT FROM webhookd.backlog b WHERE b.endpoint_id = u.id AND b.state = 'retry' AND b.due <= now() ORDER BY b.due LIMIT $2) r) c
 WHERE c.rows < $2;

-- name: batches_from
-- The log as a cursor reads it.
SELECT b.id, b.cut_at, b.outbox_ids,
       CASE WHEN b.lo < '0001-01-02 00:00:00+00' THEN '-infinity' ELSE LEAST(b.lo, '9999-12-30 00:00:00+00') END,
       CASE WHEN b.hi > '9999-12-30 00:00:00+00' THEN 'infinity' ELSE GREATEST(b.hi, '0001-01-02 00:00:00+00') END, b.late, webhookd.config_now(), b.nonce
  FROM webhookd.batch b WHERE b.id >= $1 ORDER BY b.id LIMIT $2;

-- name: newest_batch
-- Where the log ends.
SELECT max(id) FROM webhookd.batch;

-- name: settled
-- What of these pairs is settled: delivered by the ledger, or owed by the backlog. A cursor may be behind what was sent. By the index of the event: that of
-- the endpoint has all that it was sent since $3, and the planner may think that little.
SELECT u.outbox_id, u.endpoint_id FROM unnest($1::bigint[], $2::int[]) u(outbox_id, endpoint_id)
 WHERE EXISTS (SELECT FROM webhookd.attempt a WHERE a.outbox_id = u.outbox_id AND a.endpoint_id + 0 = u.endpoint_id AND a.ok AND a.at >= $3 OFFSET 0)
    OR EXISTS (SELECT FROM webhookd.backlog b WHERE b.outbox_id = u.outbox_id AND b.endpoint_id = u.endpoint_id OFFSET 0);
