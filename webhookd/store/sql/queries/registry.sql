-- name: register
-- A new daemon; it begins to look for orphans where the others have everything done. It lives, but counts for nothing before its
-- first heartbeat. Is there another that lives?
INSERT INTO webhookd.daemon (id, beat_at, low, host, version, config_hash, endpoint_ids, inactive_ids, endpoints_hash, key_ids, machine, pid, started, counts)
SELECT nextval('webhookd.daemon_id_seq')::int, clock_timestamp(), COALESCE(max(low), 0), $1, $2, $3, $4, $5, $6, $7, $9, $10, $11, false FROM webhookd.daemon
RETURNING id, low, EXISTS (SELECT FROM webhookd.daemon d WHERE d.stopped_at IS NULL AND d.beat_at > now() - $8 * interval '1 s');

-- name: downtime
-- Nobody has been beating for a while: that time does not count against any delivery.
INSERT INTO webhookd.downtime (started_at, ended_at)
SELECT max(beat_at), now() FROM webhookd.daemon HAVING max(beat_at) < now() - $1 * interval '1 s'
ON CONFLICT (started_at) DO NOTHING;

-- name: beat
-- We are alive; what the clock says, who else is alive and counts, with a hash of its endpoints and its keys, and when nobody was.
WITH me AS (UPDATE webhookd.daemon SET beat_at = now(), low = GREATEST(low, $2), listen_pid = $4, problem = $5, counts = true
                     WHERE id = $1 AND stopped_at IS NULL RETURNING id),
others AS MATERIALIZED (
  SELECT id, endpoints_hash, key_ids FROM webhookd.daemon WHERE stopped_at IS NULL AND beat_at > now() - $3 * interval '1 s' AND counts AND id <> $1)
SELECT extract(epoch FROM clock_timestamp())::float8 AS now,
       (SELECT count(*) FROM me) = 1 AS known,
       ARRAY(SELECT id FROM others ORDER BY id) AS ids,
       ARRAY(SELECT endpoints_hash FROM others ORDER BY id) AS hashes,
       ARRAY(SELECT array_to_string(key_ids, chr(10)) FROM others ORDER BY id) AS keys,
       ARRAY(SELECT extract(epoch FROM started_at)::float8 FROM webhookd.downtime ORDER BY started_at) AS down_from,
       ARRAY(SELECT extract(epoch FROM ended_at)::float8 FROM webhookd.downtime ORDER BY started_at) AS down_to;

-- name: hindered
-- Why we are not heard, as far as we know.
UPDATE webhookd.daemon SET problem = $2 WHERE id = $1 AND stopped_at IS NULL;

-- name: endpoint_sets
-- What daemons have, of those hashes that are new to us.
SELECT DISTINCT ON (endpoints_hash) endpoints_hash, endpoint_ids FROM webhookd.daemon WHERE endpoints_hash = ANY($1::text[]);

-- name: neighbours
-- The daemons of this machine that have not stopped.
SELECT id, machine, pid, started FROM webhookd.daemon WHERE stopped_at IS NULL AND machine = $1 AND id <> $2;

-- name: bury
-- These died: their processes are no more. An id is never given again, so that stays true.
UPDATE webhookd.daemon SET stopped_at = now() WHERE id = ANY($1::int[]) AND stopped_at IS NULL RETURNING id;

-- name: end_leases
-- What dead daemons had in hand is due. A lease ends soon, so only what is due within its time is looked at, of each endpoint that owes.
WITH RECURSIVE e(id) AS (
  (SELECT endpoint_id FROM webhookd.backlog WHERE state = 'retry' ORDER BY endpoint_id LIMIT 1)
  UNION ALL
  SELECT (SELECT b.endpoint_id FROM webhookd.backlog b WHERE b.state = 'retry' AND b.endpoint_id > e.id
           ORDER BY b.endpoint_id LIMIT 1)
    FROM e WHERE e.id IS NOT NULL),
leased AS MATERIALIZED (
  SELECT x.endpoint_id, x.outbox_id FROM e CROSS JOIN LATERAL (
    SELECT b.endpoint_id, b.outbox_id FROM webhookd.backlog b
     WHERE b.endpoint_id = e.id AND b.state = 'retry' AND b.due > now() AND b.due <= now() + $2 * interval '1 s'
       AND b.owner = ANY($1::int[]) ORDER BY b.due FOR UPDATE SKIP LOCKED) x
   WHERE e.id IS NOT NULL)
UPDATE webhookd.backlog d SET due = now() FROM leased l WHERE d.endpoint_id = l.endpoint_id AND d.outbox_id = l.outbox_id;

-- name: silence
-- A daemon that is dead, or only stopped, pins the queue of NOTIFY with the connection it listens on. Only ours, and only if
-- it is still the one it was: a PID comes again.
SELECT pg_terminate_backend(a.pid)
  FROM webhookd.daemon d CROSS JOIN LATERAL pg_stat_get_activity(d.listen_pid) a
 WHERE d.id <> $1 AND d.stopped_at IS NULL AND d.listen_pid IS NOT NULL AND d.beat_at < now() - $2 * interval '1 s'
   AND a.datid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND a.backend_start <= d.beat_at
   AND a.usesysid = (SELECT oid FROM pg_roles WHERE rolname = current_user) AND a.application_name = 'webhookd';

-- name: bound
-- Where this database says it belongs, and where it is.
SELECT system_identifier, environment, webhookd.place() FROM webhookd.binding;

-- name: has_endpoints
-- Whether files have had an endpoint that still counts.
SELECT EXISTS (SELECT FROM webhookd.endpoint WHERE source = 'file' AND removed_at IS NULL);

-- name: bind
-- The first daemon says which environment it is; and the server, where the row was lost.
INSERT INTO webhookd.binding AS b (system_identifier, environment) SELECT system_identifier::text, $1 FROM pg_control_system()
ON CONFLICT (one) DO UPDATE SET environment = $1 WHERE b.environment = ''
RETURNING webhookd.place();

-- name: low
-- The last batch before which everything is done.
SELECT COALESCE((SELECT b.id - 1 FROM webhookd.batch b WHERE b.id > $1 AND b.done_at IS NULL ORDER BY b.id LIMIT 1),
                (SELECT max(b.id) FROM webhookd.batch b));

-- name: leave
-- A daemon that stopped in order is dead at once; its row stays a while, for the time of its last beat.
UPDATE webhookd.daemon SET beat_at = now(), stopped_at = now() WHERE id = $1;

-- name: forget_daemons
-- Rows of daemons that stopped long ago, but for the newest, which tells since when nobody ran.
DELETE FROM webhookd.daemon
 WHERE beat_at < now() - interval '7 days' AND id <> (SELECT id FROM webhookd.daemon ORDER BY beat_at DESC, id DESC LIMIT 1);

-- name: maintain
-- A piece of what has to be done now and then: partitions ahead, those past their time, rows that nothing refers to.
SELECT done, problem FROM webhookd.maintain($1 * interval '1 s', $2 * interval '1 s', large => $3);

-- name: forget_requests
-- What was answered to requests of the API more than 12 hours ago.
SELECT webhookd.forget_requests();

-- name: sweep
-- Old rows go, at most 10,000 of each kind.
SELECT webhookd.sweep($1 * interval '1 s');

-- name: lagging
-- Cursors that have not read what retention takes next, and for how long that has been waiting.
SELECT p.endpoint_id, extract(epoch FROM now() - b.cut_at)::float8
  FROM webhookd.parked p JOIN webhookd.batch b ON b.id = p.next_batch WHERE b.cut_at < now() - $1 * interval '1 s';

-- name: consumers_lagging
-- The same of who polls, of endpoints where somebody still does.
SELECT c.endpoint_id, max(extract(epoch FROM now() - b.cut_at))::float8
  FROM webhookd.consumer c JOIN webhookd.endpoint e ON e.id = c.endpoint_id
 CROSS JOIN LATERAL (SELECT b.cut_at FROM webhookd.batch b WHERE b.id >= c.batch AND (b.id > c.batch OR c.pos < cardinality(b.outbox_ids)) ORDER BY b.id LIMIT 1) b
 WHERE e.removed_at IS NULL AND e.spec ->> 'kind' = 'poll' AND c.used_at > now() - $2 * interval '1 s' AND b.cut_at < now() - $1 * interval '1 s' GROUP BY c.endpoint_id;

-- name: sync_lock
-- One configuration is written at a time.
SELECT webhookd.lock_endpoints();

-- name: sync_endpoints
-- The files, as the database knows them; an endpoint that returns has its old number and its backlog.
INSERT INTO webhookd.endpoint AS e (tenant, name, source, spec)
SELECT u.tenant, u.name, 'file', u.spec::jsonb FROM unnest($1::text::text[], $2::text::text[], $3::text::text[]) WITH ORDINALITY u(tenant, name, spec, n)
  LEFT JOIN webhookd.endpoint k ON k.tenant = u.tenant AND k.name = u.name
 WHERE k.id IS NULL OR k.spec IS DISTINCT FROM u.spec::jsonb OR k.removed_at IS NOT NULL ORDER BY k.id, u.n  -- as all lock them that lock several
ON CONFLICT (tenant, name) DO UPDATE SET spec = EXCLUDED.spec, removed_at = NULL
 WHERE e.spec IS DISTINCT FROM EXCLUDED.spec OR e.removed_at IS NOT NULL;

-- name: loaded
-- What this daemon runs on, and that nothing is wrong with it.
UPDATE webhookd.daemon SET config_hash = $2, endpoint_ids = $3, inactive_ids = $4, endpoints_hash = $5, key_ids = $6, config_at = now(), config_problem = NULL
 WHERE id = $1;

-- name: removed_endpoints
-- An endpoint counts as removed only when no live daemon names it, whatever else their files say. One that does not tell what it names
-- may name it, unless it has our very configuration.
UPDATE webhookd.endpoint e SET removed_at = now()
 WHERE e.source = 'file' AND e.removed_at IS NULL
   AND NOT EXISTS (SELECT FROM unnest($1::text::text[], $2::text::text[]) u(tenant, name) WHERE u.tenant = e.tenant AND u.name = e.name)
   AND e.id NOT IN (SELECT unnest(d.endpoint_ids || d.inactive_ids) FROM webhookd.daemon d
                     WHERE d.stopped_at IS NULL AND d.beat_at > now() - $4 * interval '1 s')
   AND NOT EXISTS (SELECT FROM webhookd.daemon d
                    WHERE d.stopped_at IS NULL AND d.beat_at > now() - $4 * interval '1 s' AND d.endpoint_ids IS NULL AND d.config_hash <> $3);

-- name: returned_endpoints
-- What counts as removed, since we were taken for dead, and is in our files all the same.
UPDATE webhookd.endpoint e SET removed_at = NULL FROM unnest($1::text::text[], $2::text::text[]) u(tenant, name)
 WHERE e.tenant = u.tenant AND e.name = u.name AND e.removed_at IS NOT NULL;

-- name: raise_version
-- The other daemons look again.
UPDATE webhookd.config_version SET version = version + 1 RETURNING version;

-- name: own_endpoints
-- The numbers of our endpoints, in our order; one array, because thousands of rows would stall the loop.
SELECT array_agg(e.id ORDER BY u.n)
  FROM unnest($1::text::text[], $2::text::text[]) WITH ORDINALITY u(tenant, name, n) JOIN webhookd.endpoint e USING (tenant, name);

-- name: endpoints_lost
-- Whether any of these counts as removed.
SELECT EXISTS (SELECT FROM webhookd.endpoint WHERE id = ANY ($1::int[]) AND removed_at IS NOT NULL);

-- name: versions
-- How often endpoints have changed, and how often a reload was asked for.
SELECT version, reload FROM webhookd.config_version;

-- name: reload_refused
-- Why this daemon kept its old configuration.
UPDATE webhookd.daemon SET config_at = now(), config_problem = $2 WHERE id = $1;

-- name: accepted_removals
-- What an operator has let go within the hour.
SELECT DISTINCT unnest(removed) FROM webhookd.consent WHERE at > now() - interval '1 hour';

-- name: accept_removals
-- An operator lets these endpoints go; old consents are forgotten.
WITH old AS (DELETE FROM webhookd.consent WHERE at < now() - interval '1 day'),
noted AS (INSERT INTO webhookd.audit (who, action, after) VALUES ($2, 'accept removals', json_build_object('endpoints', $1::text[])))
INSERT INTO webhookd.consent (removed) VALUES ($1::text[]);

-- name: ask_for_reload
-- Every daemon reads its files again.
UPDATE webhookd.config_version SET reload = reload + 1 RETURNING clock_timestamp();

-- name: reloads
-- What the live daemons made of it.
SELECT id, host, config_hash, config_problem FROM webhookd.daemon
 WHERE stopped_at IS NULL AND beat_at > now() - $2 * interval '1 s' AND config_at >= $1 ORDER BY id;

-- name: kept_endpoints
-- Of these labels, which still count, and the live daemons that have them: one that does not tell what it has may have any.
SELECT k.label, array_agg(d.id ORDER BY d.id), array_agg(d.host ORDER BY d.id)
  FROM (SELECT e.id, concat_ws('/', NULLIF(e.tenant, ''), e.name) AS label FROM webhookd.endpoint e WHERE e.source = 'file' AND e.removed_at IS NULL) k
  JOIN webhookd.daemon d ON d.endpoint_ids IS NULL OR k.id = ANY (d.endpoint_ids || d.inactive_ids)
 WHERE k.label = ANY ($1::text[]) AND d.stopped_at IS NULL AND d.beat_at > now() - $2 * interval '1 s'
 GROUP BY k.label ORDER BY k.label;
