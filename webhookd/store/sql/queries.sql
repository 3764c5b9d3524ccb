-- Every statement of the daemon. A name, a sentence, the statement. Limits stand in the SQL; the database's now() is the only
-- clock in predicates; keys are sorted before they are written, so that two daemons never deadlock.

-- name: cut
-- Newly committed and newly due events become batches that the caller owns, of each tenant its share, and a piece of the surplus. Where a moment is
-- such as a datetime cannot be, the range of a batch is open, here and wherever one is read.
SELECT batch_id, o_nonce, o_cut_at, o_ids, CASE WHEN o_lo < '0001-01-02 00:00:00+00' THEN '-infinity' ELSE LEAST(o_lo, '9999-12-30 00:00:00+00') END,
       CASE WHEN o_hi > '9999-12-30 00:00:00+00' THEN 'infinity' ELSE GREATEST(o_hi, '0001-01-02 00:00:00+00') END, o_claims, o_parked, o_more, o_after
  FROM webhookd.cut($1, $2, $3, p_rest => $4, p_read => $5, p_full => $6, p_busy => $7, p_after => $8);

-- name: heads
-- Everything of the events but payloads above $4 bytes, and metadata of rows that are older than its bound. The range prunes partitions.
SELECT id, event_id, created_at, type, tenant, ordering_key, CASE WHEN octet_length(metadata::text) <= 65536 THEN metadata END, occurred_at, size,
       CASE WHEN octet_length(metadata::text) > 65536 THEN octet_length(metadata::text) ELSE 0 END, CASE WHEN size <= $4 THEN payload END
  FROM webhookd.outbox WHERE id = ANY($1::bigint[]) AND created_at BETWEEN $2 AND $3;

-- name: metadata
-- What was left out of heads, or not kept.
SELECT id, metadata FROM webhookd.outbox WHERE id = ANY($1::bigint[]) AND created_at BETWEEN $2 AND $3 AND metadata IS NOT NULL;

-- name: payloads
-- The payloads of what starts now; one that is too large is never read.
SELECT id, CASE WHEN size <= $4 THEN payload END
  FROM webhookd.outbox WHERE id = ANY($1::bigint[]) AND created_at BETWEEN $2 AND $3;

-- name: set_aside
-- Events that cannot be read, and why: no delivery of them is owed any longer. Those that were not known.
WITH aside AS MATERIALIZED (SELECT u.id, u.why FROM unnest($1::bigint[], $2::text[]) u(id, why)),
owed AS MATERIALIZED (
  SELECT b.endpoint_id, b.outbox_id FROM aside CROSS JOIN LATERAL
    (SELECT w.endpoint_id, w.outbox_id FROM webhookd.backlog w WHERE w.outbox_id = aside.id AND w.state IN ('retry', 'held') OFFSET 0) b
   ORDER BY 1, 2),
ended AS (
  UPDATE webhookd.backlog w SET state = 'rejected', last_error = 'event_unreadable' FROM owed
   WHERE w.endpoint_id = owed.endpoint_id AND w.outbox_id = owed.outbox_id)
INSERT INTO webhookd.unreadable (outbox_id, why) SELECT id, why FROM aside ORDER BY id ON CONFLICT (outbox_id) DO NOTHING RETURNING outbox_id;

-- name: adopt
-- Batches that nobody handles: given back, ours by a reply that was lost, or of a daemon that stopped or is dead. By its beats we judge that only
-- while we are steady, until $4: after an outage every living daemon looks dead, and this very statement may have been held up in the network.
WITH orphan AS MATERIALIZED (
  SELECT b.id, b.owner FROM webhookd.batch b
   WHERE b.id > $1 AND b.done_at IS NULL
     AND (b.owner IS NULL
          OR b.owner = $2 AND b.id <> ALL($3::bigint[])
          OR b.owner <> $2 AND EXISTS (SELECT FROM webhookd.daemon d WHERE d.id = b.owner AND d.stopped_at IS NOT NULL)
          OR now() < to_timestamp($4::float8) AND b.owner <> $2 AND NOT EXISTS (
               SELECT FROM webhookd.daemon d
                WHERE d.id = b.owner AND d.stopped_at IS NULL AND d.beat_at > now() - $5 * interval '1 s'))
   ORDER BY b.id LIMIT $6 FOR UPDATE SKIP LOCKED)
UPDATE webhookd.batch b SET owner = $2, claims = LEAST(claims + 1, 32767)  -- beyond that the owner is fence enough
  FROM orphan WHERE b.id = orphan.id
RETURNING b.id, b.nonce, b.cut_at, b.outbox_ids,
       CASE WHEN b.lo < '0001-01-02 00:00:00+00' THEN '-infinity' ELSE LEAST(b.lo, '9999-12-30 00:00:00+00') END,
       CASE WHEN b.hi > '9999-12-30 00:00:00+00' THEN 'infinity' ELSE GREATEST(b.hi, '0001-01-02 00:00:00+00') END,
       b.claims, (SELECT v.parked FROM webhookd.config_version v), orphan.owner;

-- name: known
-- What of an adopted batch is settled already: delivered by the ledger, or owed by the backlog.
-- Row by row, because without statistics the planner would read whole tables.
SELECT s.outbox_id, s.endpoint_id FROM unnest($1::bigint[]) u(id) CROSS JOIN LATERAL
  (SELECT a.outbox_id, a.endpoint_id FROM webhookd.attempt a WHERE a.outbox_id = u.id AND a.ok AND a.at >= $2 OFFSET 0) s
UNION
SELECT s.outbox_id, s.endpoint_id FROM unnest($1::bigint[]) u(id) CROSS JOIN LATERAL
  (SELECT b.outbox_id, b.endpoint_id FROM webhookd.backlog b WHERE b.outbox_id = u.id OFFSET 0) s;

-- name: give_back
-- What a stopping daemon did not finish is free for the others at once.
UPDATE webhookd.batch SET owner = NULL WHERE id = ANY($2::bigint[]) AND owner = $1 AND done_at IS NULL;

-- name: backlog_delete
-- An exception succeeded.
DELETE FROM webhookd.backlog d USING unnest($1::int[], $2::bigint[]) u(endpoint_id, outbox_id)
 WHERE d.endpoint_id = u.endpoint_id AND d.outbox_id = u.outbox_id;

-- name: backlog_insert
-- A first failure, a spill, a straggler's lease, or an end that was not a delivery.
INSERT INTO webhookd.backlog
       (endpoint_id, outbox_id, outbox_at, attempts, due, state, last_code, last_error, ordering_key, clock_from, asked, owner)
SELECT u.p, u.o, u.at, u.a, now() + u.d * interval '1 s', u.s, u.c, u.x, u.k, to_timestamp(u.f), u.q, u.w
  FROM unnest($1::int[], $2::bigint[], $3::timestamptz[], $4::smallint[], $5::float8[], $6::text[], $7::smallint[], $8::text[],
              $9::text[], $10::float8[], $11::smallint[], $12::int[]) u(p, o, at, a, d, s, c, x, k, f, q, w)
 ORDER BY u.p, u.o
ON CONFLICT DO NOTHING;

-- name: backlog_update
-- A further failure, or no attempt at all (then `made` is 0); fenced by the number of attempts the writer knew of.
UPDATE webhookd.backlog d
   SET attempts = u.a + u.made, asked = u.q, owner = NULL, deaths = u.w, due = now() + u.d * interval '1 s', state = u.s,
       last_code = CASE WHEN u.made > 0 THEN u.c ELSE d.last_code END, last_error = COALESCE(u.x, d.last_error)
  FROM unnest($1::int[], $2::bigint[], $3::smallint[], $4::smallint[], $5::float8[], $6::text[], $7::smallint[], $8::text[],
              $9::smallint[], $10::smallint[]) u(p, o, a, made, d, s, c, x, q, w)
 WHERE d.endpoint_id = u.p AND d.outbox_id = u.o AND d.attempts = u.a AND d.state = 'retry';

-- name: batch_done
-- Fenced by nonce, owner and claims: a late end closes nobody else's batch.
UPDATE webhookd.batch b SET done_at = now()
  FROM unnest($1::bigint[], $2::bigint[], $3::smallint[]) u(id, nonce, claims)
 WHERE b.id = u.id AND b.nonce = u.nonce AND b.claims = u.claims AND b.owner = $4 AND b.done_at IS NULL;

-- name: xact_id
-- Who we are inside a flush, so that a lost reply to COMMIT can be asked for.
SELECT pg_current_xact_id()::text;

-- name: xact_status
-- What became of a flush whose reply was lost.
SELECT pg_xact_status($1::text::xid8);

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
          d.asked, d.deaths;

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
SELECT webhookd.disable(e.id, $2) FROM webhookd.endpoint e WHERE e.id = $1 AND (e.revived_at IS NULL OR e.revived_at < to_timestamp($3::float8));

-- name: pause
-- An operator's word.
SELECT webhookd.pause($1);

-- name: resume
-- An operator takes it back.
SELECT webhookd.resume($1);

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

-- name: cursors
-- All before is settled; fenced by owner and epoch, and never backward, as retention may have moved it on.
UPDATE webhookd.parked p SET next_batch = u.batch, next_pos = u.pos, deaths = 0
  FROM unnest($1::int[], $2::bigint[], $3::int[], $4::bigint[], $5::int[]) u(endpoint_id, from_batch, epoch, batch, pos)
 WHERE p.endpoint_id = u.endpoint_id AND p.from_batch = u.from_batch AND p.owner = $6 AND p.epoch = u.epoch
   AND (p.next_batch, p.next_pos) < (u.batch, u.pos);

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
SELECT u.id, g.ended FROM unnest($1::int[], $3::int[], $4::float8[]) u(id, epoch, before)
 CROSS JOIN LATERAL (SELECT webhookd.give_up(u.id, $2, u.epoch, to_timestamp(u.before)) AS ended OFFSET 0) g
 WHERE g.ended > 0;

-- name: tell_exhausted
-- An event of our own for each delivery that ended without success; its id is the same if it is told twice.
SELECT webhookd.tell('delivery.exhausted', u.p, json_build_object('event_id', u.event_id, 'type', u.type, 'attempts', u.attempts, 'error', u.error),
                     'exhausted-' || u.p || '-' || u.o)
  FROM unnest($1::int[], $2::bigint[], $3::text[], $4::text[], $5::int[], $6::text[]) u(p, o, event_id, type, attempts, error);

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
       CASE WHEN b.hi > '9999-12-30 00:00:00+00' THEN 'infinity' ELSE GREATEST(b.hi, '0001-01-02 00:00:00+00') END
  FROM webhookd.batch b WHERE b.id >= $1 ORDER BY b.id LIMIT $2;

-- name: newest_batch
-- Where the log ends.
SELECT max(id) FROM webhookd.batch;

-- name: settled
-- What of these pairs is settled: delivered by the ledger, or owed by the backlog. A cursor may be behind what was sent.
SELECT u.outbox_id, u.endpoint_id FROM unnest($1::bigint[], $2::int[]) u(outbox_id, endpoint_id)
 WHERE EXISTS (SELECT FROM webhookd.attempt a WHERE a.outbox_id = u.outbox_id AND a.endpoint_id = u.endpoint_id AND a.ok AND a.at >= $3 OFFSET 0)
    OR EXISTS (SELECT FROM webhookd.backlog b WHERE b.outbox_id = u.outbox_id AND b.endpoint_id = u.endpoint_id OFFSET 0);

-- name: register
-- A new daemon; it begins to look for orphans where the others have everything done. It lives, but counts for nothing before its
-- first heartbeat. Is there another that lives?
INSERT INTO webhookd.daemon (id, beat_at, low, host, version, config_hash, endpoint_ids, inactive_ids, endpoints_hash, machine, pid, started, counts)
SELECT nextval('webhookd.daemon_id_seq')::int, clock_timestamp(), COALESCE(max(low), 0), $1, $2, $3, $4, $5, $6, $8, $9, $10, false FROM webhookd.daemon
RETURNING id, low, EXISTS (SELECT FROM webhookd.daemon d WHERE d.stopped_at IS NULL AND d.beat_at > now() - $7 * interval '1 s');

-- name: downtime
-- Nobody has been beating for a while: that time does not count against any delivery.
INSERT INTO webhookd.downtime (started_at, ended_at)
SELECT max(beat_at), now() FROM webhookd.daemon HAVING max(beat_at) < now() - $1 * interval '1 s'
ON CONFLICT (started_at) DO NOTHING;

-- name: beat
-- We are alive; what the clock says, who else is alive and counts, with a hash of its endpoints, and when nobody was.
WITH me AS (UPDATE webhookd.daemon SET beat_at = now(), low = GREATEST(low, $2), listen_pid = $4, problem = $5, counts = true
                     WHERE id = $1 AND stopped_at IS NULL RETURNING id),
others AS MATERIALIZED (
  SELECT id, endpoints_hash FROM webhookd.daemon WHERE stopped_at IS NULL AND beat_at > now() - $3 * interval '1 s' AND counts AND id <> $1)
SELECT extract(epoch FROM clock_timestamp())::float8 AS now,
       (SELECT count(*) FROM me) = 1 AS known,
       ARRAY(SELECT id FROM others ORDER BY id) AS ids,
       ARRAY(SELECT endpoints_hash FROM others ORDER BY id) AS hashes,
       ARRAY(SELECT extract(epoch FROM started_at)::float8 FROM webhookd.downtime ORDER BY started_at) AS down_from,
       ARRAY(SELECT extract(epoch FROM ended_at)::float8 FROM webhookd.downtime ORDER BY started_at) AS down_to;

-- name: hindered
-- Why we are not heard, as far as we know.
UPDATE webhookd.daemon SET problem = $2 WHERE id = $1 AND stopped_at IS NULL;

-- name: listens
-- Whoever finds us dead ends this connection, and who sees that it has the sleep lock knows that it is ours.
UPDATE webhookd.daemon SET listen_pid = pg_backend_pid() WHERE id = $1 AND stopped_at IS NULL;

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

-- name: sweep
-- Old rows go, at most 10,000 of each kind.
SELECT webhookd.sweep($1 * interval '1 s');

-- name: erase
-- What the events say is gone, of so many of them; where to go on.
SELECT next, events, deliveries, responses FROM webhookd.erase($1, $2, $3, $4);

-- name: lagging
-- Cursors that have not read what retention takes next, and for how long that has been waiting.
SELECT p.endpoint_id, extract(epoch FROM now() - b.cut_at)::float8
  FROM webhookd.parked p JOIN webhookd.batch b ON b.id = p.next_batch WHERE b.cut_at < now() - $1 * interval '1 s';

-- name: sync_lock
-- One configuration is written at a time.
SELECT webhookd.lock_endpoints();

-- name: sync_endpoints
-- The files, as the database knows them; an endpoint that returns has its old number and its backlog.
INSERT INTO webhookd.endpoint AS e (tenant, name, source, spec)
SELECT u.tenant, u.name, 'file', u.spec::jsonb FROM unnest($1::text::text[], $2::text::text[], $3::text::text[]) u(tenant, name, spec)
ON CONFLICT (tenant, name) DO UPDATE SET spec = EXCLUDED.spec, removed_at = NULL
 WHERE e.spec IS DISTINCT FROM EXCLUDED.spec OR e.removed_at IS NOT NULL;

-- name: loaded
-- What this daemon runs on, and that nothing is wrong with it.
UPDATE webhookd.daemon SET config_hash = $2, endpoint_ids = $3, inactive_ids = $4, endpoints_hash = $5, config_at = now(), config_problem = NULL
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

-- name: foreign_endpoints
-- What only other daemons have in their files.
SELECT e.id, e.tenant, e.name, e.spec FROM webhookd.endpoint e
 WHERE e.removed_at IS NULL
   AND NOT EXISTS (SELECT FROM unnest($1::text::text[], $2::text::text[]) u(tenant, name) WHERE u.tenant = e.tenant AND u.name = e.name);

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
WITH old AS (DELETE FROM webhookd.consent WHERE at < now() - interval '1 day')
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

-- name: take_sleep_lock
-- 'sleep': the sleep lock is ours, so producers notify. 'listen': another daemon sleeps, so they notify too. 'poll': a transaction
-- that inserted is open, and will not.
SELECT CASE WHEN pg_try_advisory_lock(7301, 2) THEN 'sleep'
            WHEN pg_try_advisory_xact_lock_shared(7301, 2) THEN 'poll'
            ELSE 'listen' END;

-- name: sleepers
-- Who has the sleep lock beside us, and is no daemon.
SELECT l.pid, a.usename, a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE (l.locktype, l.classid, l.objid, l.objsubid) = ('advisory', 7301, 2, 2) AND l.granted AND l.pid <> pg_backend_pid()
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.pid NOT IN (SELECT listen_pid FROM webhookd.daemon WHERE stopped_at IS NULL AND listen_pid IS NOT NULL)
 ORDER BY l.pid LIMIT 5;

-- name: lock_holders
-- Who has a lock that our work needs: of the tables that stand for locks whoever has one, of all else whom statements of ours have waited for, for a
-- second. Another transaction is another keeper. Since when: its own moment, where we may see that.
WITH here AS MATERIALIZED (SELECT l.* FROM pg_locks l),
needed(lock, id) AS (VALUES ('lock_log', 'webhookd.lock_log'::regclass::oid), ('lock_tables', 'webhookd.lock_tables'::regclass),
                            ('lock_endpoints', 'webhookd.lock_endpoints'::regclass)),
ours AS (SELECT a.pid FROM pg_stat_activity a WHERE (a.datname, a.usename, a.application_name) = (current_database(), current_user, 'webhookd')),
kept AS (
  SELECT n.lock, l.pid, l.virtualtransaction AS transaction FROM needed n JOIN here l ON l.locktype = 'relation' AND l.relation = n.id
   WHERE l.granted AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
     AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
  UNION
  SELECT 'other', NULLIF(b.pid, 0), '' FROM here w JOIN ours ON ours.pid = w.pid CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) b(pid)
   WHERE NOT w.granted AND w.waitstart < clock_timestamp() - interval '1 s' AND NOT EXISTS (SELECT FROM needed n WHERE n.id = w.relation))
SELECT k.lock, k.pid, k.transaction, a.usename, a.application_name, COALESCE(a.xact_start, now()) AS since
  FROM kept k LEFT JOIN pg_stat_activity a ON a.pid = k.pid ORDER BY 1, 2 LIMIT 5;

-- name: processes
-- Whose they are, in this order.
SELECT u.pid, a.usename, a.application_name FROM unnest($1::int[]) WITH ORDINALITY u(pid, n) LEFT JOIN pg_stat_activity a ON a.pid = u.pid ORDER BY u.n;

-- name: rings
-- Does an INSERT ring at all?
SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhookd.outbox'::regclass AND tgname = 'wake' AND tgenabled IN ('O', 'A'));

-- name: ping
-- Is anybody there?
SELECT 1;

-- name: release_sleep_lock
-- Producers need not notify any longer.
SELECT pg_advisory_unlock(7301, 2);

-- What people ask.

-- name: rights
-- What this role may of what a daemon has to: the schema, these tables and sequences, and all functions but some. Nothing where there is no schema.
WITH here AS MATERIALIZED (SELECT oid FROM pg_namespace WHERE nspname = 'webhookd'),
found AS (
  SELECT 'schema' AS kind, 'SCHEMA webhookd' AS what, 'USAGE' AS name, has_schema_privilege(h.oid, 'USAGE') AS granted FROM here h
  UNION ALL
  SELECT 'table', 'webhookd.' || quote_ident(c.relname), r.name, has_table_privilege(c.oid, r.name)
    FROM here h JOIN pg_class c ON c.relnamespace = h.oid AND c.relkind IN ('r', 'p')
    JOIN unnest($1::text[], $2::text[]) w(relation, rights) ON w.relation = c.relname CROSS JOIN LATERAL regexp_split_to_table(w.rights, ' ') r(name)
  UNION ALL
  SELECT 'sequence', 'SEQUENCE webhookd.' || quote_ident(c.relname), 'USAGE', has_sequence_privilege(c.oid, 'USAGE')
    FROM here h JOIN pg_class c ON c.relnamespace = h.oid AND c.relkind = 'S'
  UNION ALL
  SELECT 'function', format('FUNCTION %s', p.oid::regprocedure), 'EXECUTE', has_function_privilege(p.oid, 'EXECUTE')
    FROM here h JOIN pg_proc p ON p.pronamespace = h.oid AND p.prorettype <> 'trigger'::regtype AND p.proname <> ALL ($3::text[]))
SELECT quote_ident(current_user) AS role, kind, what, name, granted FROM found
 ORDER BY array_position(ARRAY['schema', 'table', 'sequence', 'function'], kind), what, name;

-- name: emit
-- The function for who may or can only call one.
SELECT webhookd.emit($1, $2, tenant => $3, ordering_key => $4, metadata => $5, event_id => $6, deliver_after => $7);

-- name: insert
-- What an application does.
INSERT INTO webhookd.outbox (type, payload) VALUES ($1, $2) RETURNING event_id;

-- name: status_waiting
-- Committed events that no batch holds yet, and the age of the oldest.
WITH last AS MATERIALIZED (SELECT pos_xmax, pos_xip FROM webhookd.batch ORDER BY id DESC LIMIT 1),
fresh AS (
  SELECT o.created_at FROM webhookd.outbox o WHERE o.xid >= (SELECT pos_xmax FROM last)
  UNION ALL
  SELECT o.created_at FROM last, unnest(last.pos_xip) u(x) CROSS JOIN LATERAL
    (SELECT i.created_at FROM webhookd.outbox i WHERE i.xid = u.x OFFSET 0) o
  UNION ALL
  SELECT o.created_at FROM webhookd.remainder r CROSS JOIN LATERAL
    (SELECT i.created_at FROM webhookd.outbox i WHERE i.xid = r.xid AND i.id > r.after_id OFFSET 0) o)
SELECT (SELECT count(*) FROM fresh) + (SELECT COALESCE(sum(cardinality(ids)), 0) FROM webhookd.surplus)::bigint,
       extract(epoch FROM now() - LEAST((SELECT min(created_at) FROM fresh WHERE isfinite(created_at)), (SELECT min(lo) FROM webhookd.surplus WHERE isfinite(lo))))::float8;

-- name: status_scheduled
-- Events that are to be delivered later, and when the first is due.
SELECT count(*), extract(epoch FROM min(due) FILTER (WHERE isfinite(due)) - now())::float8 FROM webhookd.scheduled;

-- name: status_health
-- What a monitoring system sees.
SELECT owed_seconds, rows_in_default, days_ahead, cursor_seconds, oldest_event_seconds, bytes, unreadable_events,
       exhausted_deliveries, exhausted_ranges FROM webhookd.health;

-- name: status_open
-- Batches that are not done, their events, and the age of the oldest.
SELECT count(*), COALESCE(sum(cardinality(outbox_ids)), 0)::bigint, extract(epoch FROM now() - min(cut_at))::float8
  FROM webhookd.batch
 WHERE done_at IS NULL AND id > COALESCE((SELECT max(low) FROM webhookd.daemon), 0);

-- name: status_daemons
-- Who beats.
SELECT id, host, version, config_hash, extract(epoch FROM now() - beat_at)::float8, config_problem, problem
  FROM webhookd.daemon WHERE stopped_at IS NULL AND beat_at > now() - $1 * interval '1 s' ORDER BY id;

-- name: status_silent
-- Who has not been heard for a while, and has said what is wrong.
SELECT id, host, version, config_hash, extract(epoch FROM now() - beat_at)::float8, NULL, problem
  FROM webhookd.daemon
 WHERE stopped_at IS NULL AND problem IS NOT NULL AND beat_at <= now() - $1 * interval '1 s' AND beat_at > now() - interval '1 hour'
 ORDER BY id DESC LIMIT 10;

-- name: status_endpoints
-- The backlog by endpoint and state, what of the log it has parked and missed, and the attempts of the last minute, which the index of each endpoint leads to.
-- What has never been tried waits.
SELECT p.tenant, p.name,
       COALESCE(b.waiting, 0), COALESCE(b.retrying, 0), COALESCE(b.held, 0), COALESCE(b.exhausted, 0), COALESCE(b.rejected, 0),
       CASE WHEN k.fails > 0 THEN extract(epoch FROM k.retry_at - now())::float8 ELSE b.due_in END,
       m.delivered, m.failed, k.endpoint_id IS NOT NULL, extract(epoch FROM now() - c.cut_at)::float8,
       COALESCE(s.parked, 0), COALESCE(s.parked_more, false), COALESCE(s.missed, 0), COALESCE(s.missed_more, false),
       p.spec ->> 'active' IS DISTINCT FROM 'false', p.removed_at IS NOT NULL, p.disabled_at IS NOT NULL, p.paused_at IS NOT NULL, COALESCE(k.fails > 0, false)
  FROM webhookd.endpoint p
  LEFT JOIN webhookd.parked k ON k.endpoint_id = p.id AND k.to_batch IS NULL
  LEFT JOIN webhookd.batch c ON c.id = k.next_batch
  LEFT JOIN (SELECT endpoint_id,
                    count(*) FILTER (WHERE state = 'retry' AND attempts = 0 AND last_error IS NULL) AS waiting,
                    count(*) FILTER (WHERE state = 'retry' AND (attempts > 0 OR last_error IS NOT NULL)) AS retrying,
                    count(*) FILTER (WHERE state = 'held') AS held,
                    count(*) FILTER (WHERE state = 'exhausted') AS exhausted,
                    count(*) FILTER (WHERE state = 'rejected') AS rejected,
                    extract(epoch FROM min(due) FILTER (WHERE state = 'retry') - now())::float8 AS due_in
               FROM webhookd.backlog GROUP BY endpoint_id) b ON b.endpoint_id = p.id
  LEFT JOIN webhookd.count_aside($1) s ON s.endpoint_id = p.id
 CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE a.ok) AS delivered, count(*) FILTER (WHERE NOT a.ok) AS failed
                       FROM webhookd.attempt a
                      WHERE a.endpoint_id = p.id AND a.at > now() - interval '1 minute') m
 WHERE p.removed_at IS NULL OR b.endpoint_id IS NOT NULL OR s.parked > 0 OR s.parked_more
 ORDER BY p.tenant, p.name;

-- name: hidden
-- Tables whose rows row security may hide from us, or, where it is FORCED, from functions that run with the owner's rights; and whom that is.
SELECT c.relname, CASE WHEN row_security_active(c.oid) THEN current_user ELSE o.rolname END
  FROM pg_class c JOIN pg_roles o ON o.oid = c.relowner
 WHERE c.relnamespace = to_regnamespace('webhookd') AND c.relrowsecurity
   AND (row_security_active(c.oid) OR c.relforcerowsecurity AND NOT (o.rolsuper OR o.rolbypassrls)) ORDER BY 1;

-- name: deployed
-- The endpoints of the files that run.
SELECT tenant, name, spec FROM webhookd.endpoint WHERE source = 'file' AND removed_at IS NULL;

-- name: subscribers
-- What the endpoints that are owed new events subscribe to; paused ones are owed them, too.
SELECT tenant, name, spec -> 'events', spec -> 'filter' FROM webhookd.endpoint
 WHERE source = 'file' AND removed_at IS NULL AND disabled_at IS NULL AND spec ->> 'active' IS DISTINCT FROM 'false';

-- name: events_of
-- The events of an id: one, unless the application gave it twice. Moments that a datetime cannot be are shown as the nearest that one can, here and
-- in listings.
SELECT id, event_id, LEAST(GREATEST(created_at, '0001-01-02 00:00:00+00'), '9999-12-30 00:00:00+00'), type, tenant, ordering_key, metadata,
       LEAST(GREATEST(occurred_at, '0001-01-02 00:00:00+00'), '9999-12-30 00:00:00+00'), size, 0
  FROM webhookd.outbox WHERE event_id = $1 ORDER BY id;

-- name: sees_metadata
-- Whether this role may read what filters look at.
SELECT has_column_privilege('webhookd.outbox', 'metadata', 'SELECT');

-- name: events_without_metadata
-- The events of an id, for a role that may not.
SELECT id, event_id, LEAST(GREATEST(created_at, '0001-01-02 00:00:00+00'), '9999-12-30 00:00:00+00'), type, tenant, ordering_key, NULL::json,
       LEAST(GREATEST(occurred_at, '0001-01-02 00:00:00+00'), '9999-12-30 00:00:00+00'), size, 0
  FROM webhookd.outbox WHERE event_id = $1 ORDER BY id;

-- name: ids_of
-- The same where a row is damaged: what stands in the index.
SELECT id, event_id, 'epoch'::timestamptz, '', '', NULL::text, NULL::json, NULL::timestamptz, 0, 0 FROM webhookd.outbox WHERE event_id = $1 ORDER BY id;

-- name: fates
-- What became of them; the next attempt where the endpoint is sent to.
SELECT outbox_id, endpoint, state, attempts, last_code, last_error,
       CASE WHEN isfinite(due) AND NOT EXISTS (
         SELECT FROM webhookd.endpoint e WHERE endpoint = CASE e.tenant WHEN '' THEN e.name ELSE e.tenant || '/' || e.name END AND (e.removed_at IS NOT NULL
            OR e.paused_at IS NOT NULL OR e.disabled_at IS NOT NULL OR e.spec ->> 'active' = 'false')) THEN extract(epoch FROM due - now())::float8 END
  FROM webhookd.event_status($1);

-- name: mark
-- The newest event and batch, and the moment.
SELECT COALESCE((SELECT max(id) FROM webhookd.outbox), 0), (SELECT max(id) FROM webhookd.batch), now();

-- name: pulse
-- What each endpoint met since a moment.
SELECT p.id, a.delivered, a.failed, (SELECT count(*) FROM webhookd.backlog b WHERE b.endpoint_id = p.id AND b.state = 'retry'),
       l.code, l.error, a.p50
  FROM unnest($1::int[]) p(id)
 CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE ok) AS delivered, count(*) FILTER (WHERE NOT ok) AS failed,
                            percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) FILTER (WHERE at > now() - interval '1 minute') AS p50
                       FROM webhookd.attempt WHERE endpoint_id = p.id AND at >= $2) a
  LEFT JOIN LATERAL (SELECT code, error FROM webhookd.attempt WHERE endpoint_id = p.id AND at >= $2
                      ORDER BY at DESC LIMIT 1) l ON true;

-- name: events_since
-- How many events came after this one.
SELECT count(*) FROM webhookd.outbox WHERE id > $1;

-- name: unsettled
-- Events after this one that are in no batch that is done, and those that are to be tried again.
SELECT (SELECT count(*) FROM webhookd.outbox WHERE id > $1)
     - (SELECT count(DISTINCT o) FROM webhookd.batch b, unnest(b.outbox_ids) o WHERE b.id > $2 AND b.done_at IS NOT NULL AND o > $1)
     + (SELECT count(*) FROM webhookd.backlog WHERE outbox_id > $1 AND state IN ('retry', 'held'));

-- name: account
-- Each event after this one with each endpoint, and what is known of the pair: an event whose batch is not done still waits.
WITH delivered AS MATERIALIZED (
  SELECT DISTINCT outbox_id, endpoint_id FROM webhookd.attempt WHERE outbox_id > $1 AND ok),
settled AS MATERIALIZED (
  SELECT DISTINCT o AS id, b.id AS batch FROM webhookd.batch b, unnest(b.outbox_ids) o WHERE b.id > $2 AND b.done_at IS NOT NULL)
SELECT e.id, e.event_id, e.created_at, e.type, e.tenant, e.ordering_key, e.metadata, e.occurred_at, e.size, 0, p.id,
       CASE WHEN d.outbox_id IS NOT NULL THEN 'delivered' WHEN b.state = 'retry' THEN 'retrying' WHEN b.state IS NOT NULL THEN b.state
            WHEN s.id IS NULL THEN 'waiting'
            WHEN EXISTS (SELECT FROM webhookd.parked k WHERE k.endpoint_id = p.id AND s.batch >= k.next_batch AND (s.batch < k.to_batch OR k.to_batch IS NULL))
              THEN 'waiting' END
  FROM webhookd.outbox e CROSS JOIN unnest($3::int[]) p(id)
  LEFT JOIN delivered d ON d.outbox_id = e.id AND d.endpoint_id = p.id
  LEFT JOIN webhookd.backlog b ON b.outbox_id = e.id AND b.endpoint_id = p.id
  LEFT JOIN settled s ON s.id = e.id
 WHERE e.id > $1;

-- name: endpoint_ids
-- The numbers of the endpoints by name.
SELECT id, tenant, name FROM webhookd.endpoint WHERE removed_at IS NULL;

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
  SELECT id, event_id, created_at, type, tenant, size, deliver_after FROM webhookd.outbox
   WHERE id >= $1 AND id < $2 AND ($3::timestamptz IS NULL OR created_at >= $3) AND ($4::text IS NULL OR type ~ $4)
     AND ($5::text IS NULL OR tenant = $5)
   ORDER BY id DESC LIMIT $6),
aside AS MATERIALIZED (
  SELECT a.outbox_id, count(*) FILTER (WHERE a.state = 'parked') AS parked, count(*) FILTER (WHERE a.state = 'missed') AS missed
    FROM webhookd.aside((SELECT array_agg(id) FROM page), (SELECT min(created_at) FROM page), (SELECT max(created_at) FROM page)) a GROUP BY a.outbox_id)
SELECT e.id, e.event_id, LEAST(GREATEST(e.created_at, '0001-01-02 00:00:00+00'), '9999-12-30 00:00:00+00'), e.type, e.tenant, e.size, d.delivered, b.retrying, b.held, COALESCE(s.parked, 0), b.exhausted, b.rejected,
       COALESCE(s.missed, 0),
       CASE WHEN EXISTS (SELECT FROM webhookd.unreadable u WHERE u.outbox_id = e.id) THEN 'unreadable' WHEN d.delivered + b.rows > 0 OR s.outbox_id IS NOT NULL THEN NULL
            WHEN EXISTS (SELECT FROM webhookd.scheduled s WHERE s.due = e.deliver_after AND s.outbox_id = e.id) THEN 'scheduled'
            ELSE COALESCE((SELECT CASE WHEN c.done_at IS NULL THEN 'sending'
                                         WHEN EXISTS (SELECT FROM webhookd.missed m WHERE c.id >= m.from_batch AND c.id < m.to_batch AND m.reason IN ('discarded', 'retention'))
                                           THEN 'missed' ELSE 'unmatched' END FROM webhookd.batch c
                            WHERE c.hi >= e.created_at AND c.lo <= e.created_at AND e.id = ANY (c.outbox_ids)
                            ORDER BY c.hi LIMIT 1), 'waiting') END
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
       CASE WHEN b.state IN ('retry', 'held') AND NOT EXISTS (SELECT FROM webhookd.endpoint e WHERE e.id = b.endpoint_id AND (e.removed_at IS NOT NULL
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
   WHERE EXISTS (SELECT FROM webhookd.parked UNION ALL SELECT FROM webhookd.missed)
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
       CASE WHEN b.state IN ('retry', 'held') AND NOT EXISTS (SELECT FROM webhookd.endpoint e WHERE e.id = t.endpoint_id AND (e.removed_at IS NOT NULL
              OR e.paused_at IS NOT NULL OR e.disabled_at IS NOT NULL OR e.spec ->> 'active' = 'false')) THEN b.due END, t.at
  FROM (SELECT a.outbox_id, a.endpoint_id, bool_or(a.ok) AS ok, max(a.attempt) AS attempts, max(a.at) AS at,
               (array_agg(a.code ORDER BY a.at DESC))[1] AS code, (array_agg(a.error ORDER BY a.at DESC))[1] AS error
          FROM webhookd.attempt a
         WHERE a.outbox_id >= $1 AND a.outbox_id <= $2 AND (a.outbox_id, a.endpoint_id) < ($2, $3::bigint)
           AND ($4::timestamptz IS NULL OR a.at >= $4 - interval '1 min'
                AND EXISTS (SELECT FROM webhookd.outbox o WHERE o.id = a.outbox_id AND o.created_at >= $4))
           AND ($5::int IS NULL OR a.endpoint_id = $5) AND ($6::bigint[] IS NULL OR a.outbox_id = ANY($6))
         GROUP BY a.outbox_id, a.endpoint_id) t
  LEFT JOIN LATERAL (SELECT * FROM webhookd.backlog w
                      WHERE w.endpoint_id = t.endpoint_id AND w.outbox_id = t.outbox_id OFFSET 0) b ON true
 WHERE NOT $8::bool OR (t.ok AND b.state IS NULL)
 ORDER BY t.outbox_id DESC, t.endpoint_id DESC LIMIT $7;

-- name: list_attempts
-- Attempts of these endpoints. The index of each leads to its newest; there is none over all of them by time alone.
SELECT a.at, a.outbox_id, a.endpoint_id, a.attempt, a.ok, a.code, a.ms, a.error, CASE WHEN $8::bool THEN a.response END
  FROM unnest($9::int[]) p(id) CROSS JOIN LATERAL (
    SELECT * FROM webhookd.attempt t
     WHERE t.endpoint_id = p.id AND t.at >= $1 AND t.at <= $2
       AND (t.at, t.outbox_id, t.endpoint_id, t.attempt) < ($2, $3::bigint, $4::bigint, $5::bigint) AND (NOT $6::bool OR NOT t.ok)
     ORDER BY t.at DESC, t.outbox_id DESC, t.attempt DESC LIMIT $7) a
 ORDER BY a.at DESC, a.outbox_id DESC, a.endpoint_id DESC, a.attempt DESC LIMIT $7;

-- name: list_attempts_rare
-- The same where few are expected: those of an event, and failed ones of hours in which most went well.
SELECT t.at, t.outbox_id, t.endpoint_id, t.attempt, t.ok, t.code, t.ms, t.error, CASE WHEN $8::bool THEN t.response END
  FROM webhookd.attempt t
 WHERE ($10::bigint[] IS NULL OR t.outbox_id = ANY($10)) AND t.at >= $1 AND t.at <= $2
   AND (t.at, t.outbox_id, t.endpoint_id, t.attempt) < ($2, $3::bigint, $4::bigint, $5::bigint) AND (NOT $6::bool OR NOT t.ok)
   AND t.endpoint_id = ANY($9::int[])
 ORDER BY t.at DESC, t.outbox_id DESC, t.endpoint_id DESC, t.attempt DESC LIMIT $7;

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

-- name: add_secret
-- Another secret of an endpoint; the others end at that moment, or earlier where they would have, and go when they have ended.
WITH gone AS (DELETE FROM webhookd.secret WHERE endpoint_id = $1 AND until <= now()),
others AS (UPDATE webhookd.secret SET until = LEAST(until, $4::timestamptz)
            WHERE endpoint_id = $1 AND $4::timestamptz IS NOT NULL AND (until IS NULL OR until > now()))
INSERT INTO webhookd.secret (endpoint_id, number, key_id, sealed)
SELECT p.id, COALESCE((SELECT max(s.number) + 1 FROM webhookd.secret s WHERE s.endpoint_id = p.id), 1), $2, $3
  FROM webhookd.endpoint p WHERE p.id = $1
RETURNING number;

-- name: secrets_of
SELECT key_id, sealed, until FROM webhookd.secret
 WHERE endpoint_id = $1 AND (until IS NULL OR until > now()) ORDER BY number DESC;

-- name: sealed
-- Secrets, a page after that one.
SELECT s.endpoint_id, s.number, s.key_id, s.sealed, concat_ws('/', NULLIF(p.tenant, ''), p.name)
  FROM webhookd.secret s JOIN webhookd.endpoint p ON p.id = s.endpoint_id
 WHERE (s.endpoint_id, s.number) > ($1::int, $2::int) ORDER BY s.endpoint_id, s.number LIMIT $3 FOR UPDATE OF s;

-- name: seal_again
UPDATE webhookd.secret SET key_id = $3, sealed = $4 WHERE endpoint_id = $1 AND number = $2;
