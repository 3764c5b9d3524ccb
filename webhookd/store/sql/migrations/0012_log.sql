-- Who reads the log, and who decides about who reads it: one at a time, under a lock that no stranger can take.

-- Locks that only daemons and the owner take: they lock these tables, which have no rows, and whoever may not write to them may not either. The mode
-- excludes itself and disturbs no SELECT, no pg_dump and no lock of others; it writes no WAL, takes no transaction id, and unlike EXCLUSIVE need not
-- look into every other process first.
CREATE TABLE webhookd.lock_log ();        -- reading the log, and deciding who reads it with a cursor
CREATE TABLE webhookd.lock_tables ();     -- migrations, partitions, what is swept
CREATE TABLE webhookd.lock_endpoints ();  -- writing the endpoints of the files

-- What judges by what others have committed must see that. A function cannot change how its transaction sees, so it refuses.
CREATE FUNCTION webhookd.expect_read_committed() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'this must run in a transaction that is READ COMMITTED, and this one is %', upper(current_setting('transaction_isolation'))
      USING ERRCODE = 'invalid_transaction_state', HINT = 'Begin it with BEGIN ISOLATION LEVEL READ COMMITTED, or SET default_transaction_isolation.';
  END IF;
END $$;
CREATE FUNCTION webhookd.lock_log() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM webhookd.expect_read_committed();
  LOCK TABLE webhookd.lock_log IN SHARE UPDATE EXCLUSIVE MODE;
END $$;
CREATE FUNCTION webhookd.lock_endpoints() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM webhookd.expect_read_committed();
  LOCK TABLE webhookd.lock_endpoints IN SHARE UPDATE EXCLUSIVE MODE;
END $$;
CREATE FUNCTION webhookd.lock_tables() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM webhookd.expect_read_committed();
  LOCK TABLE webhookd.lock_tables IN SHARE UPDATE EXCLUSIVE MODE;
END $$;
-- False when another has it.
CREATE FUNCTION webhookd.try_lock_log() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'read committed' THEN PERFORM webhookd.expect_read_committed(); END IF;
  LOCK TABLE webhookd.lock_log IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
  RETURN true;
EXCEPTION WHEN lock_not_available THEN RETURN false;
END $$;
CREATE FUNCTION webhookd.try_lock_tables() RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM webhookd.expect_read_committed();
  LOCK TABLE webhookd.lock_tables IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
  RETURN true;
EXCEPTION WHEN lock_not_available THEN RETURN false;
END $$;

-- CUT: newly committed and newly due events become batches of p_page that p_owner has; one snapshot, one writer at a time. p_read events of the log are
-- read at a time, of one transaction too; what is left of it is a remainder. Of each tenant p_max at most become batches; the rest is surplus, as is all
-- of the tenants in p_full, of those with surplus that has not had its first turn, and what is left of a transaction that is read in pieces. With p_rest,
-- about so many events of the surplus become batches, of tenants in turns after p_after, but for those in p_busy. Each batch says how often endpoints had
-- been parked when it was cut: who opens it has to know as much. o_more: there is more to read, or may be, in a row without a batch, while another has the log.
--
-- Most cuts find nothing, and most that find something have one transaction: what the others need costs nothing before it is needed. Above all each look at
-- the outbox costs something for each of its partitions, whatever it finds.
DROP FUNCTION webhookd.cut(int, int, int, int);
CREATE FUNCTION webhookd.part_of_transaction(p_xid xid8, p_after bigint, p_most int)
RETURNS TABLE (xid xid8, id bigint, created_at timestamptz, deliver_after timestamptz, tenant text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$  -- stable: as its caller sees it, in the same snapshot
BEGIN
  RETURN QUERY SELECT o.xid, o.id, o.created_at, o.deliver_after, o.tenant FROM webhookd.outbox o WHERE o.xid = p_xid AND o.id > p_after ORDER BY o.id LIMIT p_most;
END $$;
CREATE FUNCTION webhookd.cut(p_max int, p_page int, p_owner int, p_rest int DEFAULT 0, p_read int DEFAULT NULL,
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
    INSERT INTO webhookd.batch AS nb (id, pos_xmax, pos_xip, outbox_ids, lo, hi, owner, claims)
    SELECT prev.id + g.n, (SELECT lx FROM lim), (SELECT a FROM xip), g.ids, g.lo, g.hi, p_owner, 1::smallint
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

-- All of these take the lock of the log first, so that each (batch, endpoint) is on exactly one path: the cursor's iff from_batch <= batch < to_batch.

-- From the next batch on these endpoints read the log with a cursor of their own; `by` is the daemon that sends to them, and its breaker says how
-- often they have failed and for how many seconds they are left alone. Gives those that were not parked.
CREATE OR REPLACE FUNCTION webhookd.park(ids int[], why text, by int DEFAULT NULL, fails int[] DEFAULT NULL, waits float8[] DEFAULT NULL) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  first bigint;
  one int;
BEGIN
  PERFORM webhookd.lock_log();
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
CREATE OR REPLACE FUNCTION webhookd.pause(ids int[]) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  PERFORM webhookd.lock_log();
  RETURN QUERY UPDATE webhookd.endpoint e SET paused_at = now() WHERE e.id = ANY (ids) AND e.paused_at IS NULL RETURNING e.id;
  PERFORM webhookd.park(ids, 'paused');
  UPDATE webhookd.config_version SET parked = parked + 1;
END $$;

-- The end of a pause, and of being disabled: what came while an endpoint was disabled is not owed, and is a range in `missed`; whoever has counted answers
-- of 410 begins anew. Gives those that were one or the other.
CREATE OR REPLACE FUNCTION webhookd.resume(ids int[]) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  last bigint;
BEGIN
  PERFORM webhookd.lock_log();
  SELECT max(b.id) + 1 INTO last FROM webhookd.batch b;
  RETURN QUERY
  UPDATE webhookd.endpoint e SET paused_at = NULL, disabled_at = NULL, disabled_why = NULL,
         revived_at = CASE WHEN e.disabled_at IS NULL THEN e.revived_at ELSE clock_timestamp() END,
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
CREATE OR REPLACE FUNCTION webhookd.disable(p int, why text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  last bigint;
BEGIN
  PERFORM webhookd.lock_log();
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
-- `missed`, which grows, and one event of our own when it begins. Gives how many rows of the backlog, and ranges, ended. For its daemon alone.
CREATE OR REPLACE FUNCTION webhookd.give_up(p int, by int, its_epoch int, before timestamptz) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  first bigint;
  old bigint;
  last bigint;
  new bigint;
  ranges bigint := 0;
  ended bigint;
  held timestamptz;
BEGIN
  PERFORM webhookd.expect_read_committed();
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
    ranges := ranges + 1;
    UPDATE webhookd.missed m SET to_batch = new, at = now() WHERE m.endpoint_id = p AND m.to_batch = old AND m.reason = 'exhausted';
    IF NOT FOUND THEN
      INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason) VALUES (p, old, new, 'exhausted') ON CONFLICT DO NOTHING;
      SELECT b.cut_at INTO held FROM webhookd.batch b WHERE b.id = old;
      PERFORM webhookd.tell('delivery.exhausted', p, json_build_object('reason', 'endpoint_failing', 'from_batch', old, 'since', held));
    END IF;
  END LOOP;
  WITH over AS (
    UPDATE webhookd.backlog w SET state = 'exhausted', last_error = 'endpoint_failing', due = now()
     WHERE w.endpoint_id = p AND w.state IN ('retry', 'held') AND w.due <= now() AND w.clock_from < before RETURNING w.outbox_id)
  SELECT count(*) INTO ended FROM over;
  RETURN ended + ranges;
END $$;

-- Take a copy over: bind it to where it is, and begin to read the log anew, since the transaction ids of another cluster mean nothing here. What is owed is
-- delivered, or ends, also before cursors, which nobody has then. Waits for transactions that have inserted and holds up others meanwhile, so run it before
-- applications are let in, where that can be chosen. To write an old row anew asks again what its constraints have let pass as NOT VALID, so where one is
-- beyond them the table goes without for the statement.
CREATE OR REPLACE FUNCTION webhookd.rebase(environment text, owed text, OUT events bigint, OUT batches bigint, OUT deliveries bigint, OUT later bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  bounds text[];
  unbounds text[];
  dropped timestamptz := CASE owed WHEN 'drop' THEN now() END;
  newest bigint;
  here pg_snapshot;
  running xid8[];
BEGIN
  IF owed NOT IN ('deliver', 'drop') THEN RAISE EXCEPTION 'owed is deliver or drop'; END IF;
  PERFORM webhookd.lock_tables(), webhookd.lock_log(), webhookd.lock_endpoints();
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
    SELECT o.id, o.created_at, o.deliver_after, o.tenant FROM webhookd.outbox o LEFT JOIN held h USING (id)
     WHERE h.id IS NULL AND NOT EXISTS (SELECT FROM webhookd.scheduled z WHERE z.outbox_id = o.id)),
  scheduled AS (
    INSERT INTO webhookd.scheduled SELECT u.deliver_after, u.id, u.created_at, u.tenant FROM unread u
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
  BEGIN
    UPDATE webhookd.outbox SET xid = '0' WHERE xid >= pg_snapshot_xmax(here) OR xid = ANY (running);
  EXCEPTION WHEN check_violation THEN
    SELECT array_agg(format('ADD CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid)) ORDER BY k.conname),
           array_agg(format('DROP CONSTRAINT %I', k.conname)) INTO bounds, unbounds FROM pg_constraint k
     WHERE k.conrelid = 'webhookd.outbox'::regclass AND k.contype = 'c' AND NOT k.convalidated;
    EXECUTE 'ALTER TABLE webhookd.outbox ' || array_to_string(unbounds, ', ');
    UPDATE webhookd.outbox SET xid = '0' WHERE xid >= pg_snapshot_xmax(here) OR xid = ANY (running);
    EXECUTE 'ALTER TABLE webhookd.outbox ' || array_to_string(bounds, ', ');
  END;
  DELETE FROM webhookd.binding;
  INSERT INTO webhookd.binding (system_identifier, environment) SELECT system_identifier::text, rebase.environment FROM pg_control_system();
END $$;

REVOKE EXECUTE ON FUNCTION webhookd.expect_read_committed(), webhookd.lock_log(), webhookd.lock_endpoints(), webhookd.lock_tables(), webhookd.try_lock_log(),
  webhookd.try_lock_tables(), webhookd.part_of_transaction(xid8, bigint, int), webhookd.cut(int, int, int, int, int, text[], text[], text) FROM PUBLIC;

-- Whoever has the old lock at this moment finishes before others take the new one. A stranger who has it is in nobody's way any longer. Nothing that a cut
-- waits for may be locked by now: hence the tables of the migration before.
DO $migration$
BEGIN
  PERFORM pg_catalog.pg_advisory_xact_lock(7301, 1);
EXCEPTION WHEN lock_not_available THEN NULL;
END $migration$;
