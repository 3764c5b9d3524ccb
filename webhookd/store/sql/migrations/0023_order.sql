-- breaking: a daemon that does not know of order would send to ordered endpoints in any order.

-- What is known and in no batch yet, of a transaction that is read in pieces or of a surplus, may have lower numbers than what is cut meanwhile. Those
-- batches say so, and whoever keeps the order goes by number there. Asked as the statement sees it that makes the batch; what it leaves behind itself, it
-- knows.
CREATE FUNCTION webhookd.is_behind() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  SELECT EXISTS (SELECT FROM webhookd.remainder) OR EXISTS (SELECT FROM webhookd.surplus)
$$;
ALTER TABLE webhookd.batch ADD COLUMN late boolean NOT NULL DEFAULT false;
ALTER TABLE webhookd.batch ALTER COLUMN late SET DEFAULT webhookd.is_behind();

-- As before, but that batches say so.
CREATE OR REPLACE FUNCTION webhookd.cut(p_max int, p_page int, p_owner int, p_rest int DEFAULT 0, p_read int DEFAULT NULL,
                             p_full text[] DEFAULT '{}', p_busy text[] DEFAULT '{}', p_after text DEFAULT NULL)
RETURNS TABLE (batch_id bigint, o_nonce bigint, o_cut_at timestamptz, o_ids bigint[], o_lo timestamptz, o_hi timestamptz, o_claims smallint, o_parked bigint,
               o_more boolean, o_after text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off
SET row_security = off AS $$  -- the planner cannot know that the range is tiny
DECLARE
  most int := COALESCE(p_read, p_max);
  reached xid8;
  unfinished xid8[];
BEGIN
  IF NOT webhookd.try_lock_log() THEN
    IF p_read IS NOT NULL THEN  -- daemons of before take each row for a batch
      RETURN QUERY SELECT NULL::bigint, NULL::bigint, NULL::timestamptz, NULL::bigint[], NULL::timestamptz, NULL::timestamptz, NULL::smallint, NULL::bigint, true, NULL::text;
    END IF;
    RETURN;
  END IF;
  SELECT b.pos_xmax, b.pos_xip INTO reached, unfinished FROM webhookd.batch b ORDER BY b.id DESC LIMIT 1;
  IF EXISTS (SELECT FROM webhookd.outbox o WHERE o.xid >= reached)
     OR cardinality(unfinished) > 0 AND EXISTS (SELECT FROM webhookd.outbox o WHERE o.xid = ANY (unfinished))
     OR EXISTS (SELECT FROM webhookd.remainder) OR EXISTS (SELECT FROM webhookd.scheduled y WHERE y.due <= now()) THEN
    RETURN QUERY
    WITH RECURSIVE prev AS MATERIALIZED (SELECT b.id, b.pos_xmax, b.pos_xip FROM webhookd.batch b ORDER BY b.id DESC LIMIT 1),
    s AS MATERIALIZED (SELECT pg_current_snapshot() AS snap),
    next AS MATERIALIZED (
       SELECT o.xid, o.id, o.created_at, o.deliver_after, left(o.tenant, 255) AS tenant FROM webhookd.outbox o WHERE o.xid >= (SELECT pos_xmax FROM prev) ORDER BY o.xid, o.id LIMIT most + 1),
    lim AS MATERIALIZED (  -- whole transactions, or a piece of one that is larger
       SELECT count(*) > most AS cut_short,
              CASE WHEN count(*) <= most THEN (SELECT pg_snapshot_xmax(snap) FROM s) WHEN min(n.xid) < max(n.xid) THEN max(n.xid)
                   ELSE (max(n.xid)::text::bigint + 1)::text::xid8 END AS lx FROM next n),
    piece AS MATERIALIZED (SELECT r.xid, r.after_id, r.pages FROM webhookd.remainder r ORDER BY r.taken_at, r.xid LIMIT 1),
    found AS MATERIALIZED (
       SELECT f.*, row_number() OVER (PARTITION BY f.xid ORDER BY f.id) AS n FROM (
         SELECT n.xid, n.id, n.created_at, n.deliver_after, n.tenant, NULL::int AS pages FROM next n, lim WHERE n.xid < lim.lx
         UNION ALL
         SELECT o.*, NULL FROM prev, unnest(prev.pos_xip) u(x) CROSS JOIN LATERAL webhookd.part_of_transaction(u.x, '-9223372036854775808', most + 1) o
         UNION ALL
         SELECT o.*, piece.pages FROM piece CROSS JOIN LATERAL webhookd.part_of_transaction(piece.xid, piece.after_id, most + 1) o) f),
    fresh AS MATERIALIZED (SELECT f.* FROM found f WHERE f.n <= most),
    more AS MATERIALIZED (SELECT f.xid, max(f.id) FILTER (WHERE f.n <= most) AS after_id, COALESCE(max(f.pages), 0) + (most - 1) / p_page + 1 AS pages
                            FROM found f GROUP BY f.xid HAVING max(f.n) > most),
    begun AS (INSERT INTO webhookd.remainder AS r (xid, after_id, pages) SELECT m.xid, m.after_id, m.pages FROM more m
              ON CONFLICT (xid) DO UPDATE SET after_id = EXCLUDED.after_id, taken_at = EXCLUDED.taken_at, pages = EXCLUDED.pages),
    ended AS (DELETE FROM webhookd.remainder r USING piece WHERE r.xid = piece.xid AND NOT EXISTS (SELECT FROM more m WHERE m.xid = r.xid)),
    later AS (INSERT INTO webhookd.scheduled SELECT f.deliver_after, f.id, f.created_at, f.tenant FROM fresh f WHERE f.deliver_after > now()),
    first AS MATERIALIZED (SELECT y.due, y.outbox_id FROM webhookd.scheduled y WHERE y.due <= now() ORDER BY y.due, y.outbox_id LIMIT most),
    whose(tenant) AS (  -- when more are due than are read at a time, some of each tenant: a loose index scan
       (SELECT y.tenant FROM webhookd.scheduled y WHERE (SELECT count(*) FROM first) = most ORDER BY y.tenant LIMIT 1)
       UNION ALL
       SELECT (SELECT y.tenant FROM webhookd.scheduled y WHERE y.tenant > w.tenant ORDER BY y.tenant LIMIT 1) FROM whose w WHERE w.tenant IS NOT NULL),
    due AS (DELETE FROM webhookd.scheduled z
             USING (SELECT f.due, f.outbox_id FROM first f
                    UNION SELECT o.due, o.outbox_id FROM whose w CROSS JOIN LATERAL
                      (SELECT y.due, y.outbox_id FROM webhookd.scheduled y WHERE y.tenant = w.tenant AND y.due <= now()
                        ORDER BY y.due LIMIT (SELECT GREATEST(most / count(*), 1) FROM whose)) o) k
             WHERE z.due = k.due AND z.outbox_id = k.outbox_id RETURNING z.tenant, z.outbox_id AS id, z.outbox_at AS created_at),
    ready AS MATERIALIZED (
       SELECT f.tenant, f.xid, f.id, f.created_at, f.pages IS NOT NULL AS rest,
              (COALESCE(f.pages, 0) + (row_number() OVER (PARTITION BY f.xid, f.tenant ORDER BY f.id) - 1) / p_page)::int AS page
         FROM fresh f WHERE f.deliver_after IS NULL OR f.deliver_after <= now()
       UNION ALL
       SELECT d.tenant, '0'::xid8, d.id, d.created_at, false, 0 FROM due d),
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
    INSERT INTO webhookd.batch AS nb (id, pos_xmax, pos_xip, outbox_ids, lo, hi, owner, claims, late)
    SELECT prev.id + g.n, (SELECT lx FROM lim), (SELECT a FROM xip), g.ids, g.lo, g.hi, p_owner, 1::smallint,
           EXISTS (SELECT FROM more) OR EXISTS (SELECT FROM ranked r WHERE NOT r.taken) OR webhookd.is_behind()
    FROM prev, g
    RETURNING nb.id, nb.nonce, nb.cut_at, nb.outbox_ids, nb.lo, nb.hi, nb.claims, (SELECT v.parked FROM webhookd.config_version v),
              (SELECT l.cut_short FROM lim l) OR EXISTS (SELECT FROM more) OR (SELECT count(*) FROM due) >= most, NULL::text;
  END IF;

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

-- Of each key of an ordered endpoint that has rows in the backlog, the head is in the state retry, and the others are held behind it. One whose time is over,
-- where the order is to hold then, is held itself, and due never: until somebody resends or discards it.
CREATE INDEX backlog_held ON webhookd.backlog (endpoint_id, outbox_id) WHERE state = 'held';
CREATE INDEX backlog_held_key ON webhookd.backlog (endpoint_id, ordering_key, outbox_id) WHERE state = 'held';
CREATE INDEX backlog_stopped ON webhookd.backlog (endpoint_id) WHERE state = 'held' AND NOT isfinite(due);

-- Endpoints that keep an order are always read with a cursor while they are active, in the files of any daemon that may live.
CREATE FUNCTION webhookd.keeps_order(p int) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  SELECT EXISTS (
    SELECT FROM webhookd.endpoint e
     WHERE e.id = p AND e.spec ->> 'ordered' IN ('true', 'key') AND e.removed_at IS NULL AND e.disabled_at IS NULL
       AND (e.spec ->> 'active' IS DISTINCT FROM 'false'
            OR EXISTS (SELECT FROM webhookd.daemon d WHERE d.stopped_at IS NULL AND d.beat_at > now() - interval '1 min' AND p = ANY (d.endpoint_ids))))
$$;

-- To be called when one has come to keep an order, before anybody sends to it as such.
CREATE FUNCTION webhookd.park_ordered() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  ids int[] := ARRAY(
    SELECT e.id FROM webhookd.endpoint e
     WHERE e.spec ->> 'ordered' IN ('true', 'key') AND NOT EXISTS (SELECT FROM webhookd.parked k WHERE k.endpoint_id = e.id AND k.to_batch IS NULL)
       AND webhookd.keeps_order(e.id) ORDER BY e.id);
BEGIN
  IF cardinality(ids) > 0 THEN PERFORM webhookd.park(ids, 'ordered'); END IF;
END $$;

-- What the backlog has of an endpoint p that the daemon `by` sends to: the keys that have rows, the only one being '' where the order is not by key, and of
-- these those without a head. Of several in the state retry all but the first are held from now on, and what waits for somebody ends where the order does
-- not hold any longer. Not `ready` while something is in hand that was cut before the order began. Where its cursor has come to, and where what was held
-- last stands in the log: what is held comes after all that is before that, as far as it was not sent.
CREATE FUNCTION webhookd.order_backlog(p int, by int, by_key boolean, holds boolean, OUT ready boolean, OUT at_batch bigint, OUT at_pos int,
                                       OUT last_batch bigint, OUT last_place int, OUT keys text[], OUT headless text[])
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  SELECT NOT EXISTS (SELECT FROM webhookd.batch b WHERE b.id > (SELECT max(d.low) FROM webhookd.daemon d) AND b.id < k.from_batch AND b.done_at IS NULL)
    INTO ready FROM webhookd.parked k WHERE k.endpoint_id = p AND k.to_batch IS NULL AND k.owner = by;
  IF ready IS NOT TRUE THEN
    ready := false;
    RETURN;
  END IF;

  IF NOT holds THEN
    UPDATE webhookd.backlog w SET state = 'exhausted', due = now() WHERE w.endpoint_id = p AND w.state = 'held' AND NOT isfinite(w.due);
  END IF;
  UPDATE webhookd.backlog w SET state = 'held', due = now(), owner = NULL
    FROM (SELECT l.outbox_id FROM (
            SELECT b.outbox_id, row_number() OVER (PARTITION BY CASE WHEN by_key THEN b.ordering_key END ORDER BY b.outbox_id) AS n
              FROM webhookd.backlog b WHERE b.endpoint_id = p AND b.state = 'retry' AND (NOT by_key OR b.ordering_key IS NOT NULL)) l WHERE l.n > 1) s
   WHERE w.endpoint_id = p AND w.outbox_id = s.outbox_id AND w.state = 'retry' AND (w.owner IS NULL OR w.due <= now());  -- not one that is in hand
  IF by_key THEN  -- what was held when the order was another
    UPDATE webhookd.backlog w SET state = 'retry', due = now() WHERE w.endpoint_id = p AND w.state = 'held' AND w.ordering_key IS NULL;
  END IF;

  SELECT k.next_batch, k.next_pos INTO at_batch, at_pos FROM webhookd.parked k
   WHERE k.endpoint_id = p AND k.reason <> 'disabled' AND (k.to_batch IS NULL OR k.next_batch < k.to_batch) ORDER BY k.next_batch LIMIT 1;
  SELECT f.id, f.place INTO last_batch, last_place
    FROM (SELECT b.outbox_id, b.outbox_at FROM webhookd.backlog b WHERE b.endpoint_id = p AND b.state = 'held' ORDER BY b.outbox_id DESC LIMIT 20) h
   CROSS JOIN LATERAL (
     SELECT b.id, array_position(b.outbox_ids, h.outbox_id) AS place FROM webhookd.batch b
      WHERE b.hi >= h.outbox_at AND b.lo <= h.outbox_at AND h.outbox_id = ANY (b.outbox_ids) ORDER BY b.hi LIMIT 1) f
   ORDER BY f.id DESC, f.place DESC LIMIT 1;

  IF by_key THEN
    WITH RECURSIVE waiting(key) AS (  -- a loose index scan
      (SELECT b.ordering_key FROM webhookd.backlog b WHERE b.endpoint_id = p AND b.state = 'held' AND b.ordering_key IS NOT NULL ORDER BY b.ordering_key LIMIT 1)
      UNION ALL
      SELECT (SELECT b.ordering_key FROM webhookd.backlog b WHERE b.endpoint_id = p AND b.state = 'held' AND b.ordering_key > w.key ORDER BY b.ordering_key LIMIT 1)
        FROM waiting w WHERE w.key IS NOT NULL),
    head AS MATERIALIZED (
      SELECT b.ordering_key AS key, b.state = 'retry' AS comes FROM webhookd.backlog b
       WHERE b.endpoint_id = p AND (b.state = 'retry' OR b.state = 'held' AND NOT isfinite(b.due)) AND b.ordering_key IS NOT NULL)
    SELECT array_agg(k.key), array_agg(k.key) FILTER (WHERE k.key NOT IN (SELECT h.key FROM head h)) INTO keys, headless
      FROM (SELECT w.key FROM waiting w WHERE w.key IS NOT NULL UNION SELECT h.key FROM head h) k;
    RETURN;
  END IF;
  IF EXISTS (SELECT FROM webhookd.backlog b WHERE b.endpoint_id = p AND b.state = 'held') OR EXISTS (SELECT FROM webhookd.backlog b WHERE b.endpoint_id = p AND b.state = 'retry') THEN
    keys := ARRAY[''];
    headless := CASE WHEN NOT EXISTS (SELECT FROM webhookd.backlog b WHERE b.endpoint_id = p AND b.state = 'retry')
                      AND NOT EXISTS (SELECT FROM webhookd.backlog b WHERE b.endpoint_id = p AND b.state = 'held' AND NOT isfinite(b.due)) THEN ARRAY[''] END;
  END IF;
END $$;

-- The first that is held of each of these keys is a head from now on, and has its whole time. For whom the daemon `by` sends to.
CREATE FUNCTION webhookd.promote_held(p int, by int, by_key boolean, keys text[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM webhookd.parked k WHERE k.endpoint_id = p AND k.to_batch IS NULL AND k.owner = by) THEN RETURN; END IF;
  UPDATE webhookd.backlog w SET state = 'retry', due = now(), owner = NULL, clock_from = CASE w.attempts WHEN 0 THEN now() ELSE w.clock_from END
    FROM (SELECT CASE WHEN by_key
                      THEN (SELECT b.outbox_id FROM webhookd.backlog b
                             WHERE b.endpoint_id = p AND b.state = 'held' AND b.ordering_key = u.key ORDER BY b.outbox_id LIMIT 1)
                      ELSE (SELECT b.outbox_id FROM webhookd.backlog b WHERE b.endpoint_id = p AND b.state = 'held' ORDER BY b.outbox_id LIMIT 1) END AS id
            FROM unnest(keys) u(key)) h
   WHERE w.endpoint_id = p AND w.outbox_id = h.id AND w.state = 'held' AND isfinite(w.due);
END $$;

-- As before, but not those that keep an order.
CREATE OR REPLACE FUNCTION webhookd.unpark(ids int[], by int DEFAULT NULL, epochs int[] DEFAULT NULL) RETURNS TABLE (id int, until bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  last bigint;
BEGIN
  PERFORM webhookd.lock_log();
  SELECT max(b.id) + 1 INTO last FROM webhookd.batch b;
  RETURN QUERY
  WITH these AS MATERIALIZED (
    SELECT p.endpoint_id, p.from_batch FROM unnest(ids, epochs) u(id, epoch) JOIN webhookd.parked p ON p.endpoint_id = u.id
      JOIN webhookd.endpoint e ON e.id = u.id
     WHERE p.to_batch IS NULL AND e.paused_at IS NULL AND e.disabled_at IS NULL AND NOT webhookd.keeps_order(e.id)
       AND CASE WHEN by IS NULL THEN e.removed_at IS NOT NULL OR e.spec ->> 'active' = 'false' ELSE p.owner = by AND p.epoch = u.epoch END),
  nothing AS (DELETE FROM webhookd.parked p USING these t WHERE p.endpoint_id = t.endpoint_id AND p.from_batch = t.from_batch AND p.from_batch = last
              RETURNING p.endpoint_id),
  ended AS (UPDATE webhookd.parked p SET to_batch = last FROM these t
             WHERE p.endpoint_id = t.endpoint_id AND p.from_batch = t.from_batch AND p.from_batch < last RETURNING p.endpoint_id)
  SELECT n.endpoint_id, last FROM nothing n UNION ALL SELECT d.endpoint_id, last FROM ended d;
  IF FOUND THEN UPDATE webhookd.config_version SET parked = parked + 1; END IF;
END $$;

-- As before, but that one that keeps an order is read with a cursor at once.
CREATE OR REPLACE FUNCTION webhookd.enable(ids int[]) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  last bigint;
  enabled int[];
BEGIN
  PERFORM webhookd.lock_log();
  PERFORM FROM webhookd.endpoint e WHERE e.id = ANY (ids) AND e.disabled_at IS NOT NULL ORDER BY e.id FOR NO KEY UPDATE;
  SELECT max(b.id) + 1 INTO last FROM webhookd.batch b;
  WITH before AS MATERIALIZED (SELECT e.id, e.disabled_at, e.disabled_why FROM webhookd.endpoint e WHERE e.id = ANY (ids)),
  changed AS (
    UPDATE webhookd.endpoint e SET disabled_at = NULL, disabled_why = NULL, revived_at = clock_timestamp()
     WHERE e.id = ANY (ids) AND e.disabled_at IS NOT NULL RETURNING e.*),
  noted AS (
    INSERT INTO webhookd.audit (action, subject, tenant, before)
    SELECT 'enable', concat_ws('/', NULLIF(c.tenant, ''), c.name), c.tenant, json_build_object('disabled_at', b.disabled_at, 'disabled_why', b.disabled_why)
      FROM changed c JOIN before b USING (id) ORDER BY c.tenant, c.name)
  SELECT array_agg(c.id ORDER BY c.id) INTO enabled FROM changed c;
  IF enabled IS NULL THEN RETURN; END IF;
  DELETE FROM webhookd.parked p WHERE p.endpoint_id = ANY (enabled) AND p.reason = 'disabled' AND p.from_batch = last;  -- nothing came
  WITH ended AS (
    UPDATE webhookd.parked p SET to_batch = last, next_batch = last
     WHERE p.endpoint_id = ANY (enabled) AND p.reason = 'disabled' AND p.to_batch IS NULL RETURNING p.endpoint_id, p.from_batch)
  INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason)
  SELECT d.endpoint_id, d.from_batch, last, 'disabled' FROM ended d WHERE d.from_batch < last ON CONFLICT DO NOTHING;
  PERFORM webhookd.park(ARRAY(SELECT e.id FROM webhookd.endpoint e WHERE e.id = ANY (enabled) AND e.paused_at IS NOT NULL), 'paused');
  PERFORM webhookd.park_ordered();
  UPDATE webhookd.config_version SET parked = parked + 1;
  RETURN QUERY SELECT unnest(enabled);
END $$;

-- As before, but that what is owed anew to an endpoint that keeps an order is held behind what it is owed already.
CREATE OR REPLACE FUNCTION webhookd.replay_step(p_replay bigint, OUT many int, OUT more boolean)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  it webhookd.replay;
  piece record;
  allowed int;
  enough int;
  kept text;
BEGIN
  many := 0;
  more := false;
  SELECT r.* INTO it FROM webhookd.replay r WHERE r.id = p_replay AND r.state = 'running' FOR UPDATE SKIP LOCKED;
  IF it.id IS NULL THEN RETURN; END IF;
  IF EXISTS (SELECT FROM webhookd.endpoint e WHERE e.id = it.endpoint_id AND (e.paused_at IS NOT NULL OR e.disabled_at IS NOT NULL OR e.removed_at IS NOT NULL
                                                                             OR e.spec ->> 'active' = 'false'))
     OR EXISTS (SELECT FROM webhookd.parked k WHERE k.endpoint_id = it.endpoint_id AND k.to_batch IS NULL AND k.fails > 0) THEN
    RETURN;
  END IF;
  allowed := LEAST(floor(it.rate::float8 * extract(epoch FROM now() - it.paced_at)::float8 + 1e-6), GREATEST(1, it.rate), 500)::int;
  enough := LEAST(GREATEST(it.rate, 10), 400)::int;
  IF allowed < 1 OR (SELECT count(*) FROM (SELECT FROM webhookd.backlog b WHERE b.endpoint_id = it.endpoint_id AND b.state = 'retry' AND b.due <= now()
                                            ORDER BY b.due LIMIT enough) d) >= enough THEN
    RETURN;
  END IF;
  piece := webhookd.replay_piece(it.endpoint_id, it.query, it.to_batch, LEAST(GREATEST(4 * allowed, 50), 500), allowed, it.id, it.next_batch, it.next_pos);
  many := piece.many;
  more := (piece.next_batch, piece.next_pos) <> (it.next_batch, it.next_pos) AND piece.next_batch < it.to_batch;
  SELECT e.spec ->> 'ordered' INTO kept FROM webhookd.endpoint e WHERE e.id = it.endpoint_id;
  IF kept IN ('true', 'key') THEN
    UPDATE webhookd.backlog b SET state = 'held'
     WHERE b.endpoint_id = it.endpoint_id AND b.state = 'retry' AND b.due = now() AND b.replay = it.id AND (kept = 'true' OR b.ordering_key IS NOT NULL);
  END IF;
  UPDATE webhookd.replay r
     SET next_batch = piece.next_batch, next_pos = piece.next_pos, sent = r.sent + piece.many, gone = r.gone + piece.gone,
         paced_at = GREATEST(r.paced_at + piece.many / r.rate * interval '1 s', now() - GREATEST(1, 1 / r.rate) * interval '1 s'),
         state = CASE WHEN piece.next_batch >= r.to_batch THEN 'done' ELSE r.state END,
         ended_at = CASE WHEN piece.next_batch >= r.to_batch THEN now() END
   WHERE r.id = it.id;
END $$;
REVOKE EXECUTE ON FUNCTION webhookd.is_behind(), webhookd.keeps_order(int), webhookd.park_ordered(), webhookd.order_backlog(int, int, boolean, boolean),
  webhookd.promote_held(int, int, boolean, text[]) FROM PUBLIC;
