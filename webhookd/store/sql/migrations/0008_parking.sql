-- breaking: a daemon that does not know of parked endpoints would send to them as if they were live.
ALTER TABLE webhookd.config_version ADD COLUMN parked bigint NOT NULL DEFAULT 0;  -- raised by whatever parks, unparks, pauses or resumes
ALTER TABLE webhookd.endpoint ADD COLUMN resumed_at timestamptz;                  -- the end of its last pause: the three days count from there

-- A transaction of very many events is read in pieces, so that it holds nobody up: what of it is in no batch yet. Endpoints that are parked meanwhile read
-- the rest of it with their cursors, as all that is cut later.
CREATE TABLE webhookd.remainder (
  xid      xid8        PRIMARY KEY,
  after_id bigint      NOT NULL,                                                  -- its events up to here are in batches, or scheduled
  taken_at timestamptz NOT NULL DEFAULT now()                                     -- several take turns
);
DROP INDEX webhookd.outbox_xid;
CREATE INDEX outbox_xid ON webhookd.outbox (xid, id);

-- As before, but of a transaction p_max events at most, and p_rest of one that has a remainder, in batches of their own. Each batch says how often
-- endpoints had been parked when it was cut: who opens it has to know as much.
DROP FUNCTION webhookd.cut(int, int, int);
CREATE FUNCTION webhookd.cut(p_max int, p_page int, p_owner int, p_rest int DEFAULT 0)
RETURNS TABLE (batch_id bigint, o_nonce bigint, o_cut_at timestamptz, o_ids bigint[], o_lo timestamptz, o_hi timestamptz, o_claims smallint, o_parked bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$  -- the planner cannot know that the range is tiny
BEGIN
  IF NOT pg_try_advisory_xact_lock(7301, 1) THEN RETURN; END IF;
  RETURN QUERY
  WITH prev AS MATERIALIZED (SELECT b.id, b.pos_xmax, b.pos_xip FROM webhookd.batch b ORDER BY b.id DESC LIMIT 1),
  s AS MATERIALIZED (SELECT pg_current_snapshot() AS snap),
  next AS MATERIALIZED (
     SELECT o.xid, o.id, o.created_at, o.deliver_after FROM webhookd.outbox o WHERE o.xid >= (SELECT pos_xmax FROM prev) ORDER BY o.xid, o.id LIMIT p_max + 1),
  lim AS MATERIALIZED (  -- whole transactions, or a piece of one that is larger
     SELECT CASE WHEN count(*) <= p_max THEN (SELECT pg_snapshot_xmax(snap) FROM s) WHEN min(n.xid) < max(n.xid) THEN max(n.xid)
                 ELSE (max(n.xid)::text::bigint + 1)::text::xid8 END AS lx FROM next n),
  piece AS MATERIALIZED (SELECT r.xid, r.after_id FROM webhookd.remainder r WHERE p_rest > 0 ORDER BY r.taken_at, r.xid LIMIT 1),
  found AS MATERIALIZED (
     SELECT f.*, row_number() OVER (PARTITION BY f.xid ORDER BY f.id) AS n, CASE WHEN f.rest THEN p_rest ELSE p_max END AS most FROM (
       SELECT n.xid, n.id, n.created_at, n.deliver_after, false AS rest FROM next n, lim WHERE n.xid < lim.lx
       UNION ALL
       SELECT o.xid, o.id, o.created_at, o.deliver_after, false FROM prev, unnest(prev.pos_xip) u(x) CROSS JOIN LATERAL
         (SELECT i.xid, i.id, i.created_at, i.deliver_after FROM webhookd.outbox i WHERE i.xid = u.x ORDER BY i.id LIMIT p_max + 1) o
       UNION ALL
       SELECT o.xid, o.id, o.created_at, o.deliver_after, true FROM piece CROSS JOIN LATERAL
         (SELECT i.xid, i.id, i.created_at, i.deliver_after FROM webhookd.outbox i WHERE i.xid = piece.xid AND i.id > piece.after_id ORDER BY i.id LIMIT p_rest + 1) o) f),
  fresh AS MATERIALIZED (SELECT f.rest, f.id, f.created_at, f.deliver_after FROM found f WHERE f.n <= f.most),
  more AS MATERIALIZED (SELECT f.xid, max(f.id) FILTER (WHERE f.n <= f.most) AS after_id FROM found f GROUP BY f.xid HAVING max(f.n) > min(f.most)),
  begun AS (INSERT INTO webhookd.remainder AS r (xid, after_id) SELECT m.xid, m.after_id FROM more m
            ON CONFLICT (xid) DO UPDATE SET after_id = EXCLUDED.after_id, taken_at = EXCLUDED.taken_at),
  ended AS (DELETE FROM webhookd.remainder r USING piece WHERE r.xid = piece.xid AND NOT EXISTS (SELECT FROM more m WHERE m.xid = r.xid)),
  later AS (INSERT INTO webhookd.scheduled SELECT f.deliver_after, f.id, f.created_at FROM fresh f WHERE f.deliver_after > now()),
  due AS (DELETE FROM webhookd.scheduled z USING (SELECT y.due, y.outbox_id FROM webhookd.scheduled y WHERE y.due <= now() ORDER BY y.due, y.outbox_id LIMIT p_max) k
           WHERE z.due = k.due AND z.outbox_id = k.outbox_id RETURNING z.outbox_id AS id, z.outbox_at AS created_at),
  ready AS MATERIALIZED (SELECT f.rest, f.id, f.created_at FROM fresh f WHERE f.deliver_after IS NULL OR f.deliver_after <= now()
                         UNION ALL SELECT false, d.id, d.created_at FROM due d),
  xip AS MATERIALIZED (SELECT COALESCE(array_agg(q.x), '{}') AS a FROM (
       SELECT u.x FROM prev, s, unnest(prev.pos_xip) u(x) WHERE NOT pg_visible_in_snapshot(u.x, s.snap)
       UNION SELECT u.x FROM prev, s, lim, pg_snapshot_xip(s.snap) u(x) WHERE u.x >= prev.pos_xmax AND u.x < lim.lx) q),
  g AS (SELECT row_number() OVER (ORDER BY q.rest, q.p) AS n, array_agg(q.id ORDER BY q.id) ids, min(q.created_at) lo, max(q.created_at) hi
          FROM (SELECT r.rest, (row_number() OVER (PARTITION BY r.rest ORDER BY r.id) - 1) / p_page AS p, r.id, r.created_at FROM ready r) q GROUP BY q.rest, q.p
        UNION ALL SELECT 1, '{}'::bigint[], now(), now() WHERE NOT EXISTS (SELECT FROM ready) AND EXISTS (SELECT FROM fresh))
  INSERT INTO webhookd.batch AS nb (id, pos_xmax, pos_xip, outbox_ids, lo, hi, owner, claims)
  SELECT prev.id + g.n, (SELECT lx FROM lim), (SELECT a FROM xip), g.ids, g.lo, g.hi, p_owner, 1::smallint
  FROM prev, g
  RETURNING nb.id, nb.nonce, nb.cut_at, nb.outbox_ids, nb.lo, nb.hi, nb.claims, (SELECT v.parked FROM webhookd.config_version v);
END $$;

-- As before; what is left of a transaction that is read in pieces has not been read either.
CREATE OR REPLACE FUNCTION webhookd.needed(part text, since timestamptz, until timestamptz) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  found boolean;
  newest bigint;
  low bigint := COALESCE((SELECT max(d.low) FROM webhookd.daemon d), 0);
BEGIN
  EXECUTE format('SELECT EXISTS (SELECT FROM webhookd.%I o WHERE o.xid >= $1 OR o.xid = ANY ($2))
                      OR EXISTS (SELECT FROM webhookd.remainder r JOIN webhookd.%I o ON o.xid = r.xid AND o.id > r.after_id), max(o.id) FROM webhookd.%I o', part, part, part)
     USING (SELECT pos_xmax FROM webhookd.batch ORDER BY id DESC LIMIT 1), (SELECT pos_xip FROM webhookd.batch ORDER BY id DESC LIMIT 1)
      INTO found, newest;
  RETURN CASE
    WHEN found THEN 'it has events that no daemon has read'
    WHEN EXISTS (SELECT FROM webhookd.batch b WHERE b.id > low AND b.done_at IS NULL AND b.lo < needed.until AND b.hi >= needed.since)
      THEN 'it has events that a daemon has in hand'
    WHEN EXISTS (SELECT FROM webhookd.scheduled z WHERE z.outbox_at >= needed.since AND z.outbox_at < needed.until)
      THEN 'it has events that are scheduled for later'
    WHEN EXISTS (SELECT FROM webhookd.replay r JOIN webhookd.batch b ON b.id >= r.next_batch
                  WHERE r.state = 'running' AND b.lo < needed.until AND b.hi >= needed.since)
      THEN 'a replay is to read it'
    WHEN EXISTS (SELECT FROM webhookd.backlog w WHERE w.outbox_id <= newest AND w.state IN ('retry', 'held')
                    AND w.outbox_at >= needed.since AND w.outbox_at < needed.until)
      THEN 'it has deliveries that are to be tried again'
    END;
END $$;

-- For a monitoring system, as before; unread is also what is left of a transaction that is read in pieces.
CREATE OR REPLACE VIEW webhookd.health AS
WITH last AS MATERIALIZED (SELECT b.pos_xmax, b.pos_xip FROM webhookd.batch b ORDER BY b.id DESC LIMIT 1),
unread AS (
  SELECT o.created_at FROM webhookd.outbox o WHERE o.xid >= (SELECT pos_xmax FROM last)
  UNION ALL
  SELECT o.created_at FROM last, unnest(last.pos_xip) u(x) CROSS JOIN LATERAL
    (SELECT i.created_at FROM webhookd.outbox i WHERE i.xid = u.x OFFSET 0) o
  UNION ALL
  SELECT o.created_at FROM webhookd.remainder r CROSS JOIN LATERAL
    (SELECT i.created_at FROM webhookd.outbox i WHERE i.xid = r.xid AND i.id > r.after_id OFFSET 0) o),
ahead AS (
  SELECT min(p.until) AS until FROM (SELECT t.parent, max(x.until) AS until FROM (VALUES ('outbox'), ('attempt')) t(parent)
    LEFT JOIN LATERAL webhookd.partitions(t.parent) x ON true GROUP BY t.parent) p)
SELECT (SELECT count(*) FROM unread) AS unread_events,
       (SELECT extract(epoch FROM now() - min(created_at))::float8 FROM unread) AS unread_seconds,
       (SELECT count(*) FROM webhookd.batch b
         WHERE b.done_at IS NULL AND b.id > COALESCE((SELECT max(d.low) FROM webhookd.daemon d), 0)) AS open_batches,
       (SELECT count(*) FROM webhookd.backlog w WHERE w.state IN ('retry', 'held')) AS owed_deliveries,
       (SELECT extract(epoch FROM now() - min(w.outbox_at))::float8 FROM webhookd.backlog w WHERE w.state IN ('retry', 'held')) AS owed_seconds,
       (SELECT count(*) FROM webhookd.scheduled) AS scheduled_events,
       webhookd.rows_in_default() AS rows_in_default,
       (SELECT extract(epoch FROM until - now())::float8 / 86400 FROM ahead) AS days_ahead,
       (SELECT extract(epoch FROM now() - min(b.cut_at))::float8 FROM webhookd.parked p JOIN webhookd.batch b ON b.id = p.next_batch) AS cursor_seconds,
       (SELECT extract(epoch FROM now() - o.created_at)::float8 FROM webhookd.outbox o ORDER BY o.id LIMIT 1) AS oldest_event_seconds,
       (SELECT count(*) FROM webhookd.daemon d WHERE d.stopped_at IS NULL AND d.beat_at > now() - interval '15 s') AS live_daemons,
       (SELECT extract(epoch FROM now() - max(d.beat_at))::float8 FROM webhookd.daemon d) AS last_beat_seconds,
       (SELECT COALESCE(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
         WHERE c.relnamespace = to_regnamespace('webhookd') AND c.relkind = 'r') AS bytes;

-- What operators may subscribe to: an event of our own about an endpoint, which it is never owed itself.
CREATE FUNCTION webhookd.tell(kind text, p int, about json DEFAULT '{}', event_id text DEFAULT gen_random_uuid()::text) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
  INSERT INTO webhookd.outbox (event_id, type, tenant, payload, metadata)
  SELECT tell.event_id, 'webhookd.' || tell.kind, CASE e.tenant WHEN '*' THEN '' ELSE e.tenant END,
         (json_build_object('endpoint', l.label, 'tenant', e.tenant, 'name', e.name)::jsonb || tell.about::jsonb)::json, json_build_object('endpoint', l.label)
    FROM webhookd.endpoint e CROSS JOIN LATERAL (SELECT CASE WHEN e.tenant = '' THEN e.name ELSE e.tenant || '/' || e.name END AS label) l
   WHERE e.id = tell.p
$$;

-- All of these take the cut lock first, so that each (batch, endpoint) is on exactly one path: the cursor's iff from_batch <= batch < to_batch.
DROP FUNCTION webhookd.park(int, text);
DROP FUNCTION webhookd.unpark(int, int, int);

-- From the next batch on these endpoints read the log with a cursor of their own; `by` is the daemon that sends to them, and its breaker says how
-- often they have failed and for how many seconds they are left alone. Gives those that were not parked.
CREATE FUNCTION webhookd.park(ids int[], why text, by int DEFAULT NULL, fails int[] DEFAULT NULL, waits float8[] DEFAULT NULL) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  first bigint;
  one int;
BEGIN
  PERFORM pg_advisory_xact_lock(7301, 1);
  SELECT max(b.id) + 1 INTO first FROM webhookd.batch b;
  FOR one IN INSERT INTO webhookd.parked AS k (endpoint_id, from_batch, next_batch, reason, owner, epoch, fails, retry_at)
  SELECT u.id, first, first, why, CASE WHEN older.endpoint_id IS NULL THEN by ELSE older.owner END, 1,
         COALESCE(u.fails, 0), now() + u.wait * interval '1 s'
    FROM unnest(ids, fails, waits) u(id, fails, wait)
    LEFT JOIN LATERAL (SELECT p.endpoint_id, p.owner FROM webhookd.parked p  -- one that is about to end has a daemon already
                        WHERE p.endpoint_id = u.id AND p.next_batch < p.to_batch ORDER BY p.from_batch DESC LIMIT 1) older ON true
   ORDER BY u.id
  ON CONFLICT (endpoint_id) WHERE to_batch IS NULL DO NOTHING
  RETURNING k.endpoint_id
  LOOP
    IF why = 'failing' THEN PERFORM webhookd.tell('endpoint.failing', one); END IF;
    RETURN NEXT one;
  END LOOP;
  IF FOUND THEN UPDATE webhookd.config_version SET parked = parked + 1; END IF;
END $$;

-- From the next batch on these are live again; the daemon that has them reads what lies before that. Not those that are paused or disabled, nor those
-- that another daemon has taken over. Without `by`: of endpoints that are not owed anything new, whoever has them. Gives the batches they end before.
CREATE FUNCTION webhookd.unpark(ids int[], by int DEFAULT NULL, epochs int[] DEFAULT NULL) RETURNS TABLE (id int, until bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  last bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(7301, 1);
  SELECT max(b.id) + 1 INTO last FROM webhookd.batch b;
  RETURN QUERY
  WITH these AS MATERIALIZED (
    SELECT p.endpoint_id, p.from_batch FROM unnest(ids, epochs) u(id, epoch) JOIN webhookd.parked p ON p.endpoint_id = u.id
      JOIN webhookd.endpoint e ON e.id = u.id
     WHERE p.to_batch IS NULL AND e.paused_at IS NULL AND e.disabled_at IS NULL
       AND CASE WHEN by IS NULL THEN e.removed_at IS NOT NULL OR e.spec ->> 'active' = 'false' ELSE p.owner = by AND p.epoch = u.epoch END),
  nothing AS (DELETE FROM webhookd.parked p USING these t WHERE p.endpoint_id = t.endpoint_id AND p.from_batch = t.from_batch AND p.from_batch = last
              RETURNING p.endpoint_id),
  ended AS (UPDATE webhookd.parked p SET to_batch = last FROM these t
             WHERE p.endpoint_id = t.endpoint_id AND p.from_batch = t.from_batch AND p.from_batch < last RETURNING p.endpoint_id)
  SELECT n.endpoint_id, last FROM nothing n UNION ALL SELECT d.endpoint_id, last FROM ended d;
  IF FOUND THEN UPDATE webhookd.config_version SET parked = parked + 1; END IF;
END $$;

-- An operator's word. Nothing is sent, what arrives is kept in the log, and the three days stand still. Gives those that were not paused.
CREATE FUNCTION webhookd.pause(ids int[]) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(7301, 1);
  RETURN QUERY UPDATE webhookd.endpoint e SET paused_at = now() WHERE e.id = ANY (ids) AND e.paused_at IS NULL RETURNING e.id;
  PERFORM webhookd.park(ids, 'paused');
  UPDATE webhookd.config_version SET parked = parked + 1;
END $$;

-- The end of a pause, and of being disabled: what came while an endpoint was disabled is not owed, and is a range in `missed`. Gives those that
-- were one or the other.
CREATE FUNCTION webhookd.resume(ids int[]) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  last bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(7301, 1);
  SELECT max(b.id) + 1 INTO last FROM webhookd.batch b;
  RETURN QUERY
  UPDATE webhookd.endpoint e SET paused_at = NULL, disabled_at = NULL, disabled_why = NULL,
         resumed_at = CASE WHEN e.paused_at IS NULL THEN e.resumed_at ELSE now() END
   WHERE e.id = ANY (ids) AND (e.paused_at IS NOT NULL OR e.disabled_at IS NOT NULL) RETURNING e.id;
  DELETE FROM webhookd.parked p WHERE p.endpoint_id = ANY (ids) AND p.reason = 'disabled' AND p.from_batch = last;  -- nothing came
  WITH ended AS (
    UPDATE webhookd.parked p SET to_batch = last, next_batch = last
     WHERE p.endpoint_id = ANY (ids) AND p.reason = 'disabled' AND p.to_batch IS NULL RETURNING p.endpoint_id, p.from_batch)
  INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason)
  SELECT d.endpoint_id, d.from_batch, last, 'disabled' FROM ended d WHERE d.from_batch < last ON CONFLICT DO NOTHING;
  UPDATE webhookd.config_version SET parked = parked + 1;
END $$;

-- New events are not owed to this endpoint until it is resumed; what it was owed before is kept. False when it was disabled before.
CREATE FUNCTION webhookd.disable(p int, why text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  last bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(7301, 1);
  SELECT max(b.id) + 1 INTO last FROM webhookd.batch b;
  UPDATE webhookd.endpoint e SET disabled_at = now(), disabled_why = why WHERE e.id = p AND e.disabled_at IS NULL;
  IF NOT FOUND THEN RETURN false; END IF;
  DELETE FROM webhookd.parked k WHERE k.endpoint_id = p AND k.to_batch IS NULL AND k.from_batch = last;
  UPDATE webhookd.parked k SET to_batch = last WHERE k.endpoint_id = p AND k.to_batch IS NULL;
  INSERT INTO webhookd.parked (endpoint_id, from_batch, next_batch, reason) VALUES (p, last, 9223372036854775807, 'disabled');  -- it reads nothing
  UPDATE webhookd.config_version SET parked = parked + 1;
  PERFORM webhookd.tell('endpoint.disabled', p, json_build_object('reason', why));
  RETURN true;
END $$;

-- What came before a moment and is still behind an endpoint that fails will not be sent: its time is over. The log's part of it is one range in
-- `missed`, which grows, and one event of our own when it begins. Gives how many rows of the backlog ended. For its daemon alone.
CREATE FUNCTION webhookd.give_up(p int, by int, its_epoch int, before timestamptz) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  first bigint;
  old bigint;
  last bigint;
  new bigint;
  ended bigint;
  held timestamptz;
BEGIN
  PERFORM FROM webhookd.parked k WHERE k.endpoint_id = p AND k.to_batch IS NULL AND k.owner = by AND k.epoch = its_epoch AND k.fails > 0 FOR UPDATE;
  IF NOT FOUND THEN RETURN 0; END IF;
  FOR first, old, last IN
    SELECT k.from_batch, k.next_batch, k.to_batch FROM webhookd.parked k
     WHERE k.endpoint_id = p AND k.owner = by AND (k.to_batch IS NULL OR k.next_batch < k.to_batch) ORDER BY k.from_batch FOR UPDATE
  LOOP
    SELECT b.id INTO new FROM webhookd.batch b WHERE b.id >= old AND b.cut_at >= before ORDER BY b.id LIMIT 1;
    new := LEAST(COALESCE(new, (SELECT max(b.id) + 1 FROM webhookd.batch b)), last);
    CONTINUE WHEN new <= old;
    UPDATE webhookd.parked k SET next_batch = new, next_pos = 0 WHERE k.endpoint_id = p AND k.from_batch = first;
    UPDATE webhookd.config_version SET parked = parked + 1;
    UPDATE webhookd.missed m SET to_batch = new WHERE m.endpoint_id = p AND m.to_batch = old AND m.reason = 'exhausted';
    IF NOT FOUND THEN
      INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason) VALUES (p, old, new, 'exhausted') ON CONFLICT DO NOTHING;
      SELECT b.cut_at INTO held FROM webhookd.batch b WHERE b.id = old;
      PERFORM webhookd.tell('delivery.exhausted', p, json_build_object('reason', 'endpoint_failing', 'from_batch', old, 'since', held));
    END IF;
  END LOOP;
  WITH over AS (
    UPDATE webhookd.backlog w SET state = 'exhausted', last_error = 'endpoint_failing'
     WHERE w.endpoint_id = p AND w.state IN ('retry', 'held') AND w.due <= now() AND w.clock_from < before RETURNING w.outbox_id)
  SELECT count(*) INTO ended FROM over;
  RETURN ended;
END $$;

-- Taking a copy over, as before, and with it the cursors.
CREATE OR REPLACE FUNCTION webhookd.rebase(environment text, owed text, OUT events bigint, OUT batches bigint, OUT deliveries bigint, OUT later bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
  dropped timestamptz := CASE owed WHEN 'drop' THEN now() END;
  newest bigint;
  here pg_snapshot;
  running xid8[];
BEGIN
  IF owed NOT IN ('deliver', 'drop') THEN RAISE EXCEPTION 'owed is deliver or drop'; END IF;
  PERFORM pg_advisory_xact_lock(7301, 0), pg_advisory_xact_lock(7301, 1), pg_advisory_xact_lock(7301, 3);
  LOCK TABLE webhookd.outbox IN SHARE MODE;  -- all that has been inserted is committed now, and nothing more comes until we have
  here := pg_current_snapshot();
  running := ARRAY(SELECT pg_snapshot_xip(here));
  SELECT max(id) INTO newest FROM webhookd.batch;

  SELECT count(*) INTO batches FROM webhookd.batch WHERE done_at IS NULL;
  SELECT count(*) INTO deliveries FROM webhookd.backlog WHERE state IN ('retry', 'held');
  SELECT count(*) INTO later FROM webhookd.scheduled;
  IF dropped IS NOT NULL THEN
    INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason)
    SELECT p.id, b.id, b.id + 1, 'discarded' FROM webhookd.batch b CROSS JOIN webhookd.endpoint p WHERE b.done_at IS NULL
    ON CONFLICT DO NOTHING;
    UPDATE webhookd.backlog SET state = 'rejected', last_error = 'discarded' WHERE state IN ('retry', 'held');
    DELETE FROM webhookd.scheduled;  -- these are in no batch, so they end with those that nobody has read
  END IF;
  UPDATE webhookd.batch SET owner = NULL, done_at = dropped WHERE done_at IS NULL;
  UPDATE webhookd.daemon SET stopped_at = now() WHERE stopped_at IS NULL;

  -- Whether an event has been read, the batches know, whatever its transaction id says.
  DELETE FROM webhookd.remainder;
  WITH held AS MATERIALIZED (SELECT DISTINCT u.id FROM webhookd.batch b, unnest(b.outbox_ids) u(id)),
  unread AS MATERIALIZED (
    SELECT o.id, o.created_at, o.deliver_after FROM webhookd.outbox o LEFT JOIN held h USING (id)
     WHERE h.id IS NULL AND NOT EXISTS (SELECT FROM webhookd.scheduled z WHERE z.outbox_id = o.id)),
  scheduled AS (
    INSERT INTO webhookd.scheduled SELECT u.deliver_after, u.id, u.created_at FROM unread u
     WHERE dropped IS NULL AND u.deliver_after > now() RETURNING outbox_id),
  page AS (
    SELECT (row_number() OVER (ORDER BY u.id) - 1) / 500 AS number, u.id, u.created_at FROM unread u
     WHERE dropped IS NOT NULL OR u.deliver_after IS NULL OR u.deliver_after <= now()),
  made AS (
    INSERT INTO webhookd.batch (id, pos_xmax, pos_xip, outbox_ids, lo, hi, done_at)
    SELECT newest + 2 + p.number, pg_snapshot_xmax(here), running, array_agg(p.id ORDER BY p.id), min(p.created_at), max(p.created_at), dropped
      FROM page p GROUP BY p.number
    UNION ALL
    SELECT newest + 1, pg_snapshot_xmax(here), running, '{}', now(), now(), now()  -- the position, also where nothing is unread
    RETURNING id)
  SELECT count(*) - CASE WHEN dropped IS NULL THEN 0 ELSE later END FROM unread INTO events;
  IF dropped IS NOT NULL THEN
    INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason)
    SELECT p.id, newest + 2, b.last + 1, 'discarded' FROM webhookd.endpoint p, (SELECT max(id) AS last FROM webhookd.batch) b WHERE b.last > newest + 1;
  END IF;

  -- What is parked: nobody has it, and what is dropped no cursor reads.
  SELECT max(b.id) + 1 INTO newest FROM webhookd.batch b;
  IF dropped IS NOT NULL THEN
    INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason)
    SELECT p.endpoint_id, p.next_batch, COALESCE(p.to_batch, newest), 'discarded' FROM webhookd.parked p WHERE p.next_batch < COALESCE(p.to_batch, newest)
    ON CONFLICT (endpoint_id, from_batch) DO UPDATE SET to_batch = EXCLUDED.to_batch;
    UPDATE webhookd.parked p SET next_batch = COALESCE(p.to_batch, newest), next_pos = 0 WHERE p.next_batch < COALESCE(p.to_batch, newest);
  END IF;
  UPDATE webhookd.parked SET owner = NULL;
  UPDATE webhookd.config_version SET parked = parked + 1;

  -- Ids of the other cluster that would look as if they were to come here.
  UPDATE webhookd.outbox SET xid = '0' WHERE xid >= pg_snapshot_xmax(here) OR xid = ANY (running);
  DELETE FROM webhookd.binding;
  INSERT INTO webhookd.binding (system_identifier, environment) SELECT system_identifier::text, rebase.environment FROM pg_control_system();
END $$;

-- What became of an event, as before; also `parked` for an endpoint whose cursor has not come to it, and `missed` for one that was disabled when it
-- came.
CREATE OR REPLACE FUNCTION webhookd.event_status(event_id text)
RETURNS TABLE (outbox_id bigint, endpoint text, state text, attempts int, last_code smallint, last_error text,
               due timestamptz, last_attempt_at timestamptz)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH event AS MATERIALIZED (
    SELECT o.id, o.created_at, o.deliver_after, o.type, o.tenant, o.metadata FROM webhookd.outbox o WHERE o.event_id = event_status.event_id),
  tried AS MATERIALIZED (
    SELECT DISTINCT ON (a.outbox_id, a.endpoint_id) a.outbox_id, a.endpoint_id, a.at, a.code, a.error,
           max(a.attempt) OVER w AS attempts, bool_or(a.ok) OVER w AS ok
    FROM event e CROSS JOIN LATERAL (SELECT * FROM webhookd.attempt t WHERE t.outbox_id = e.id) a
    WINDOW w AS (PARTITION BY a.outbox_id, a.endpoint_id)
    ORDER BY a.outbox_id, a.endpoint_id, a.at DESC),
  owed AS MATERIALIZED (
    SELECT b.* FROM event e CROSS JOIN LATERAL (SELECT * FROM webhookd.backlog t WHERE t.outbox_id = e.id) b),
  held AS MATERIALIZED (
    SELECT e.id AS event, b.id, b.done_at FROM event e CROSS JOIN LATERAL (  -- the index on hi leads to the first batch that can hold it, which is nearly always the one
    SELECT c.id, c.done_at FROM webhookd.batch c
    WHERE c.hi >= e.created_at AND c.lo <= e.created_at AND e.id = ANY (c.outbox_ids)
      AND NOT EXISTS (SELECT FROM webhookd.scheduled s WHERE s.due = e.deliver_after AND s.outbox_id = e.id)
    ORDER BY c.hi LIMIT 1) b),
  aside AS MATERIALIZED (  -- those that match by all but what only reading it would tell
    SELECT e.id AS outbox_id, k.endpoint_id, CASE k.reason WHEN 'disabled' THEN 'missed' ELSE 'parked' END AS state, k.reason
    FROM event e JOIN held b ON b.event = e.id
    JOIN webhookd.parked k ON b.id >= k.from_batch AND (b.id < k.to_batch OR k.to_batch IS NULL) AND (b.id >= k.next_batch OR k.reason = 'disabled')
    JOIN webhookd.endpoint p ON p.id = k.endpoint_id
    WHERE p.tenant IN (e.tenant, '*') AND EXISTS (
            SELECT FROM jsonb_array_elements_text(p.spec -> 'events') x(pattern)
            WHERE x.pattern = e.type OR x.pattern = '*' AND NOT starts_with(e.type, 'webhookd.')
               OR x.pattern LIKE '%.*' AND starts_with(e.type, left(x.pattern, -1)))
      AND NOT EXISTS (
            SELECT FROM jsonb_each(p.spec -> 'filter') f(label, wanted)
            WHERE COALESCE(e.metadata::jsonb ->> f.label, '') NOT IN (SELECT jsonb_array_elements_text(f.wanted)))),
  known AS MATERIALIZED (
    SELECT outbox_id, endpoint_id,
           CASE WHEN b.state = 'retry' THEN 'retrying' WHEN b.state IS NOT NULL THEN b.state
                WHEN t.ok THEN 'delivered' ELSE 'retrying' END AS state,
           COALESCE(b.attempts, t.attempts)::int AS attempts,
           CASE WHEN b.state IS NULL THEN t.code ELSE b.last_code END AS last_code,
           CASE WHEN b.state IS NULL THEN t.error ELSE b.last_error END AS last_error,
           CASE WHEN b.state IN ('retry', 'held') THEN b.due END AS due,
           t.at AS last_attempt_at
    FROM tried t FULL JOIN owed b USING (outbox_id, endpoint_id))
  SELECT k.outbox_id,
         COALESCE(CASE WHEN p.tenant = '' THEN p.name ELSE p.tenant || '/' || p.name END, '#' || k.endpoint_id),
         k.state, k.attempts, k.last_code, k.last_error, k.due, k.last_attempt_at
  FROM known k LEFT JOIN webhookd.endpoint p ON p.id = k.endpoint_id
  UNION ALL
  SELECT a.outbox_id, CASE WHEN p.tenant = '' THEN p.name ELSE p.tenant || '/' || p.name END, a.state, 0, NULL, a.reason, NULL, NULL
  FROM aside a JOIN webhookd.endpoint p ON p.id = a.endpoint_id
  WHERE NOT EXISTS (SELECT FROM known k WHERE k.outbox_id = a.outbox_id AND k.endpoint_id = a.endpoint_id)
  UNION ALL
  SELECT e.id, NULL,
         CASE WHEN b.id IS NULL THEN 'waiting' WHEN b.done_at IS NULL THEN 'sending' WHEN m.reason IS NULL THEN 'unmatched' ELSE 'missed' END,
         0, NULL, m.reason, CASE WHEN b.id IS NULL THEN e.deliver_after END, NULL
  FROM event e
  LEFT JOIN held b ON b.event = e.id
  LEFT JOIN LATERAL (SELECT r.reason FROM webhookd.missed r WHERE b.id >= r.from_batch AND b.id < r.to_batch LIMIT 1) m ON true
  WHERE NOT EXISTS (SELECT FROM known k WHERE k.outbox_id = e.id) AND NOT EXISTS (SELECT FROM aside a WHERE a.outbox_id = e.id)
  ORDER BY 1, 2
$$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA webhookd FROM PUBLIC;
GRANT EXECUTE ON FUNCTION webhookd.partitions(text), webhookd.rows_in_default() TO PUBLIC;
