-- What a tenant has committed beyond its share waits here in pages, in no batch yet. So the log is always read to its end, whoever fills it, and an event
-- of another tenant is found at once. Endpoints that are parked meanwhile read these events with their cursors, as all that is cut later.
CREATE SEQUENCE webhookd.surplus_id_seq;
CREATE TABLE webhookd.surplus (
  tenant text   NOT NULL,
  turn   bigint NOT NULL,                             -- the first page of each transaction, then the second of each: one that is large lets others pass
  id     bigint NOT NULL DEFAULT nextval('webhookd.surplus_id_seq'),
  page   int    NOT NULL,                             -- of its transaction, from 0
  ids    bigint[] NOT NULL,
  lo     timestamptz NOT NULL, hi timestamptz NOT NULL,  -- created_at range of the events
  PRIMARY KEY (tenant, turn, id)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

-- Of a transaction that is not read in one go, how many pages have been.
ALTER TABLE webhookd.remainder ADD COLUMN pages int NOT NULL DEFAULT 0;

-- As before, but p_read events of the log are read at a time, and of each tenant p_max at most become batches; the rest is surplus, as is all of the
-- tenants in p_full, of those with surplus that has not had its first turn, and what is left of a transaction that is read in pieces. With p_rest, about
-- so many events of the surplus become batches, of tenants in turns after p_after, but for those in p_busy. o_more: there is more to read.
DROP FUNCTION webhookd.cut(int, int, int, int);
CREATE FUNCTION webhookd.cut(p_max int, p_page int, p_owner int, p_rest int DEFAULT 0, p_read int DEFAULT NULL,
                             p_full text[] DEFAULT '{}', p_busy text[] DEFAULT '{}', p_after text DEFAULT NULL)
RETURNS TABLE (batch_id bigint, o_nonce bigint, o_cut_at timestamptz, o_ids bigint[], o_lo timestamptz, o_hi timestamptz, o_claims smallint, o_parked bigint,
               o_more boolean, o_after text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$  -- the planner cannot know that the range is tiny
DECLARE
  most int := COALESCE(p_read, p_max);
BEGIN
  IF NOT pg_try_advisory_xact_lock(7301, 1) THEN RETURN; END IF;
  RETURN QUERY
  WITH prev AS MATERIALIZED (SELECT b.id, b.pos_xmax, b.pos_xip FROM webhookd.batch b ORDER BY b.id DESC LIMIT 1),
  s AS MATERIALIZED (SELECT pg_current_snapshot() AS snap),
  next AS MATERIALIZED (
     SELECT o.xid, o.id, o.created_at, o.deliver_after, o.tenant FROM webhookd.outbox o WHERE o.xid >= (SELECT pos_xmax FROM prev) ORDER BY o.xid, o.id LIMIT most + 1),
  lim AS MATERIALIZED (  -- whole transactions, or a piece of one that is larger
     SELECT count(*) > most AS cut_short,
            CASE WHEN count(*) <= most THEN (SELECT pg_snapshot_xmax(snap) FROM s) WHEN min(n.xid) < max(n.xid) THEN max(n.xid)
                 ELSE (max(n.xid)::text::bigint + 1)::text::xid8 END AS lx FROM next n),
  piece AS MATERIALIZED (SELECT r.xid, r.after_id, r.pages FROM webhookd.remainder r ORDER BY r.taken_at, r.xid LIMIT 1),
  found AS MATERIALIZED (
     SELECT f.*, row_number() OVER (PARTITION BY f.xid ORDER BY f.id) AS n FROM (
       SELECT n.xid, n.id, n.created_at, n.deliver_after, n.tenant, NULL::int AS pages FROM next n, lim WHERE n.xid < lim.lx
       UNION ALL
       SELECT o.xid, o.id, o.created_at, o.deliver_after, o.tenant, NULL FROM prev, unnest(prev.pos_xip) u(x) CROSS JOIN LATERAL
         (SELECT i.xid, i.id, i.created_at, i.deliver_after, i.tenant FROM webhookd.outbox i WHERE i.xid = u.x ORDER BY i.id LIMIT most + 1) o
       UNION ALL
       SELECT o.xid, o.id, o.created_at, o.deliver_after, o.tenant, piece.pages FROM piece CROSS JOIN LATERAL
         (SELECT i.xid, i.id, i.created_at, i.deliver_after, i.tenant FROM webhookd.outbox i WHERE i.xid = piece.xid AND i.id > piece.after_id ORDER BY i.id LIMIT most + 1) o) f),
  fresh AS MATERIALIZED (SELECT f.* FROM found f WHERE f.n <= most),
  more AS MATERIALIZED (SELECT f.xid, max(f.id) FILTER (WHERE f.n <= most) AS after_id, COALESCE(max(f.pages), 0) + (most - 1) / p_page + 1 AS pages
                          FROM found f GROUP BY f.xid HAVING max(f.n) > most),
  begun AS (INSERT INTO webhookd.remainder AS r (xid, after_id, pages) SELECT m.xid, m.after_id, m.pages FROM more m
            ON CONFLICT (xid) DO UPDATE SET after_id = EXCLUDED.after_id, taken_at = EXCLUDED.taken_at, pages = EXCLUDED.pages),
  ended AS (DELETE FROM webhookd.remainder r USING piece WHERE r.xid = piece.xid AND NOT EXISTS (SELECT FROM more m WHERE m.xid = r.xid)),
  later AS (INSERT INTO webhookd.scheduled SELECT f.deliver_after, f.id, f.created_at FROM fresh f WHERE f.deliver_after > now()),
  due AS (DELETE FROM webhookd.scheduled z USING (SELECT y.due, y.outbox_id FROM webhookd.scheduled y WHERE y.due <= now() ORDER BY y.due, y.outbox_id LIMIT most) k
           WHERE z.due = k.due AND z.outbox_id = k.outbox_id RETURNING z.due, z.outbox_id AS id, z.outbox_at AS created_at),
  ready AS MATERIALIZED (
     SELECT f.tenant, f.xid, f.id, f.created_at, f.pages IS NOT NULL AS rest,
            (COALESCE(f.pages, 0) + (row_number() OVER (PARTITION BY f.xid, f.tenant ORDER BY f.id) - 1) / p_page)::int AS page
       FROM fresh f WHERE f.deliver_after IS NULL OR f.deliver_after <= now()
     UNION ALL
     SELECT COALESCE(o.tenant, ''), '0'::xid8, d.id, d.created_at, false, 0
       FROM due d LEFT JOIN webhookd.outbox o ON o.id = d.id AND o.created_at = d.created_at),
  waits AS MATERIALIZED (  -- whoever has not had its first turn is not overtaken
     SELECT t.tenant FROM (SELECT DISTINCT r.tenant FROM ready r) t
      WHERE t.tenant = ANY (p_full) OR EXISTS (SELECT FROM webhookd.surplus p WHERE p.tenant = t.tenant AND p.page = 0)),
  ranked AS MATERIALIZED (
     SELECT r.*, NOT r.rest AND w.tenant IS NULL AND row_number() OVER (PARTITION BY r.tenant, r.rest ORDER BY r.xid, r.id) <= p_max AS taken
       FROM ready r LEFT JOIN waits w ON w.tenant = r.tenant),
  kept AS (
     INSERT INTO webhookd.surplus (tenant, turn, page, ids, lo, hi)
     SELECT q.tenant, q.at + COALESCE((SELECT p.turn FROM webhookd.surplus p WHERE p.tenant = q.tenant ORDER BY p.turn LIMIT 1), 0), min(q.page),
            array_agg(q.id ORDER BY q.id), min(q.created_at), max(q.created_at)
       FROM (SELECT k.*, (row_number() OVER (PARTITION BY k.tenant, k.at ORDER BY k.xid, k.id) - 1) / p_page AS part
               FROM (SELECT r.*, r.page - CASE WHEN r.rest THEN 0 ELSE min(r.page) OVER (PARTITION BY r.xid, r.tenant) END AS at FROM ranked r WHERE NOT r.taken) k) q
      GROUP BY q.tenant, q.at, q.part ORDER BY q.tenant, q.at, q.part),
  xip AS MATERIALIZED (SELECT COALESCE(array_agg(q.x), '{}') AS a FROM (
       SELECT u.x FROM prev, s, unnest(prev.pos_xip) u(x) WHERE NOT pg_visible_in_snapshot(u.x, s.snap)
       UNION SELECT u.x FROM prev, s, lim, pg_snapshot_xip(s.snap) u(x) WHERE u.x >= prev.pos_xmax AND u.x < lim.lx) q),
  g AS (SELECT q.p + 1 AS n, array_agg(q.id ORDER BY q.id) ids, min(q.created_at) lo, max(q.created_at) hi
          FROM (SELECT (row_number() OVER (ORDER BY r.id) - 1) / p_page AS p, r.id, r.created_at FROM ranked r WHERE r.taken) q GROUP BY q.p
        UNION ALL SELECT 1, '{}'::bigint[], now(), now() WHERE NOT EXISTS (SELECT FROM ranked r WHERE r.taken) AND EXISTS (SELECT FROM fresh f WHERE f.pages IS NULL))
  INSERT INTO webhookd.batch AS nb (id, pos_xmax, pos_xip, outbox_ids, lo, hi, owner, claims)
  SELECT prev.id + g.n, (SELECT lx FROM lim), (SELECT a FROM xip), g.ids, g.lo, g.hi, p_owner, 1::smallint
  FROM prev, g
  RETURNING nb.id, nb.nonce, nb.cut_at, nb.outbox_ids, nb.lo, nb.hi, nb.claims, (SELECT v.parked FROM webhookd.config_version v),
            (SELECT l.cut_short FROM lim l) OR EXISTS (SELECT FROM more) OR (SELECT count(*) FROM due) = most, NULL::text;

  IF p_rest = 0 OR NOT EXISTS (SELECT FROM webhookd.surplus) THEN RETURN; END IF;
  RETURN QUERY
  WITH RECURSIVE turn(n, tenant) AS (
     SELECT 1, COALESCE((SELECT p.tenant FROM webhookd.surplus p WHERE p.tenant > p_after ORDER BY p.tenant LIMIT 1),
                        (SELECT p.tenant FROM webhookd.surplus p ORDER BY p.tenant LIMIT 1))
     UNION ALL
     SELECT t.n + 1, COALESCE((SELECT p.tenant FROM webhookd.surplus p WHERE p.tenant > t.tenant ORDER BY p.tenant LIMIT 1),
                              (SELECT p.tenant FROM webhookd.surplus p ORDER BY p.tenant LIMIT 1))
       FROM turn t WHERE t.n < 100),
  free AS MATERIALIZED (SELECT min(t.n) AS n, t.tenant FROM turn t WHERE t.tenant <> ALL (p_busy) GROUP BY t.tenant),
  ahead AS MATERIALIZED (  -- of each a page's worth, which may be many small pages
     SELECT a.* FROM (
       SELECT f.n, p.*, sum(cardinality(p.ids)) OVER (PARTITION BY f.n ORDER BY p.turn, p.id) - cardinality(p.ids) AS before
         FROM free f CROSS JOIN LATERAL (SELECT p.* FROM webhookd.surplus p WHERE p.tenant = f.tenant ORDER BY p.turn, p.id LIMIT 100) p) a
      WHERE a.before < p_page),
  drawn AS MATERIALIZED (
     SELECT d.* FROM (SELECT a.*, sum(cardinality(a.ids)) OVER (ORDER BY a.n, a.turn, a.id) - cardinality(a.ids) AS total FROM ahead a) d WHERE d.total < p_rest),
  gone AS (DELETE FROM webhookd.surplus p USING drawn d WHERE p.tenant = d.tenant AND p.turn = d.turn AND p.id = d.id),
  g AS (SELECT q.p + 1 AS n, array_agg(q.event ORDER BY q.event) ids, min(q.lo) lo, max(q.hi) hi
          FROM (SELECT (row_number() OVER (ORDER BY d.n, d.turn, d.id, u.event) - 1) / p_page AS p, u.event, d.lo, d.hi
                  FROM drawn d CROSS JOIN LATERAL unnest(d.ids) u(event)) q GROUP BY q.p),
  prev AS MATERIALIZED (SELECT b.id, b.pos_xmax, b.pos_xip FROM webhookd.batch b ORDER BY b.id DESC LIMIT 1)
  INSERT INTO webhookd.batch AS nb (id, pos_xmax, pos_xip, outbox_ids, lo, hi, owner, claims)
  SELECT prev.id + g.n, prev.pos_xmax, prev.pos_xip, g.ids, g.lo, g.hi, p_owner, 1::smallint
  FROM prev, g
  RETURNING nb.id, nb.nonce, nb.cut_at, nb.outbox_ids, nb.lo, nb.hi, nb.claims, (SELECT v.parked FROM webhookd.config_version v),
            EXISTS (SELECT FROM webhookd.remainder), (SELECT d.tenant FROM drawn d ORDER BY d.n DESC LIMIT 1);
END $$;

-- As before; a surplus has been read, but no batch has it.
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
    WHEN EXISTS (SELECT FROM webhookd.surplus s WHERE s.lo < needed.until AND s.hi >= needed.since)
      THEN 'it has events that wait for those before them'
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

-- For a monitoring system, as before, also where a moment is infinite; unread is also the surplus. And events that could not be read, and what keeps
-- daemons from their work.
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
SELECT (SELECT count(*) FROM unread) + (SELECT COALESCE(sum(cardinality(s.ids)), 0)::bigint FROM webhookd.surplus s) AS unread_events,
       (SELECT extract(epoch FROM now() - min(w.since))::float8
          FROM (SELECT min(created_at) AS since FROM unread WHERE isfinite(created_at) UNION ALL SELECT min(s.lo) FROM webhookd.surplus s WHERE isfinite(s.lo)) w) AS unread_seconds,
       (SELECT count(*) FROM webhookd.batch b
         WHERE b.done_at IS NULL AND b.id > COALESCE((SELECT max(d.low) FROM webhookd.daemon d), 0)) AS open_batches,
       (SELECT count(*) FROM webhookd.backlog w WHERE w.state IN ('retry', 'held')) AS owed_deliveries,
       (SELECT extract(epoch FROM now() - min(w.outbox_at))::float8 FROM webhookd.backlog w WHERE w.state IN ('retry', 'held') AND isfinite(w.outbox_at)) AS owed_seconds,
       (SELECT count(*) FROM webhookd.scheduled) AS scheduled_events,
       webhookd.rows_in_default() AS rows_in_default,
       (SELECT extract(epoch FROM until - now())::float8 / 86400 FROM ahead) AS days_ahead,
       (SELECT extract(epoch FROM now() - min(b.cut_at))::float8 FROM webhookd.parked p JOIN webhookd.batch b ON b.id = p.next_batch) AS cursor_seconds,
       (SELECT extract(epoch FROM now() - o.created_at)::float8 FROM webhookd.outbox o WHERE isfinite(o.created_at) ORDER BY o.id LIMIT 1) AS oldest_event_seconds,
       (SELECT count(*) FROM webhookd.daemon d WHERE d.stopped_at IS NULL AND d.beat_at > now() - interval '15 s') AS live_daemons,
       (SELECT extract(epoch FROM now() - max(d.beat_at))::float8 FROM webhookd.daemon d) AS last_beat_seconds,
       (SELECT COALESCE(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
         WHERE c.relnamespace = to_regnamespace('webhookd') AND c.relkind = 'r') AS bytes,
       (SELECT count(*) FROM webhookd.unreadable) AS unreadable_events,
       (SELECT string_agg(DISTINCT d.problem, '; ') FROM webhookd.daemon d
         WHERE d.stopped_at IS NULL AND d.beat_at > now() - interval '15 s') AS problems;

-- Taking a copy over, as before; a surplus is in no batch, so it is unread.
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
  DELETE FROM webhookd.surplus;
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

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA webhookd FROM PUBLIC;
GRANT EXECUTE ON FUNCTION webhookd.partitions(text), webhookd.rows_in_default() TO PUBLIC;
