-- What the owner of a database adds to it, such as rules and publications, and what older rows and replication leave behind, stops nobody.

-- What operators may subscribe to: an event of our own about an endpoint, which it is never owed itself. Where a constraint or a trigger of the owner does
-- not take it, it is lost with a warning: what it tells of has happened all the same, and is written in this very transaction.
CREATE OR REPLACE FUNCTION webhookd.tell(kind text, p int, about json DEFAULT '{}', event_id text DEFAULT gen_random_uuid()::text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  INSERT INTO webhookd.outbox (own, event_id, type, tenant, payload, metadata)
  SELECT true, tell.event_id, 'webhookd.' || tell.kind, CASE e.tenant WHEN '*' THEN '' ELSE e.tenant END,
         (json_build_object('endpoint', l.label, 'tenant', e.tenant, 'name', e.name)::jsonb || tell.about::jsonb)::json, json_build_object('endpoint', l.label)
    FROM webhookd.endpoint e CROSS JOIN LATERAL (SELECT CASE WHEN e.tenant = '' THEN e.name ELSE e.tenant || '/' || e.name END AS label) l
   WHERE e.id = tell.p;
EXCEPTION
  WHEN insufficient_privilege THEN RAISE;  -- of a right that a role lacks the daemon says so, and waits
  WHEN integrity_constraint_violation OR data_exception OR plpgsql_error OR syntax_error_or_access_rule_violation THEN
    RAISE WARNING 'webhookd.% about endpoint % is lost: %', tell.kind, tell.p, SQLERRM;
END $$;

-- Where a publication has all tables, as for logical replication, Postgres refuses to change or delete a row of a table without a key unless it is told what
-- to know it by. Each partition has to be told itself.
ALTER TABLE webhookd.config_version REPLICA IDENTITY FULL;
ALTER TABLE webhookd.consent REPLICA IDENTITY FULL;
DO $migration$
DECLARE
  part regclass;
BEGIN
  FOR part IN SELECT i.inhrelid::regclass FROM pg_catalog.pg_inherits i WHERE i.inhparent = 'webhookd.attempt'::regclass LOOP
    EXECUTE pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY FULL', part);
  END LOOP;
END $migration$;

-- Make DEFAULT a dated partition for the gap that one of its rows is in, and an empty one DEFAULT, which gets the rows of other gaps. Rows that lie more
-- than a week ahead of the last partition, as a clock leaves them that was wrong for a moment, get their day alone, so that the days before it can be made.
-- The new DEFAULT gets its constraints when its rows are there: what they have let pass as NOT VALID, they would not let pass again.
CREATE OR REPLACE FUNCTION webhookd.swap_default(parent text, OUT done text, OUT problem text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  bound text;
  field text := CASE parent WHEN 'outbox' THEN 'created_at' ELSE 'at' END;
  main text := parent || '_default';
  fields text := (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
                   WHERE attrelid = to_regclass('webhookd.' || quote_ident(parent)) AND attnum > 0 AND NOT attisdropped AND attgenerated = '');
  tomorrow timestamptz := date_trunc('day', now(), 'UTC') + interval '24 hours';
  some_row timestamptz;
  low timestamptz;
  high timestamptz;
BEGIN
  EXECUTE format('SELECT COALESCE((SELECT %1$I FROM webhookd.%2$I WHERE %1$I < $1 LIMIT 1), (SELECT min(%1$I) FROM webhookd.%2$I WHERE isfinite(%1$I)))', field, main)
     INTO some_row USING tomorrow;
  IF some_row IS NULL THEN
    problem := 'it has rows at infinity, which no partition can be made for';
    done := main;
    RETURN;
  END IF;
  SELECT max(p.until) INTO low FROM webhookd.partitions(parent) p WHERE p.until <= some_row;
  SELECT COALESCE(min(p.since), GREATEST(tomorrow, date_trunc('day', some_row, 'UTC') + interval '24 hours')) INTO high
    FROM webhookd.partitions(parent) p WHERE p.since > some_row;
  done := format('%s_until_%s', parent, to_char(high AT TIME ZONE 'UTC', 'YYYYMMDD'));
  IF some_row > GREATEST(low, now()) + interval '168 hours' THEN
    low := date_trunc('day', some_row, 'UTC');
    high := LEAST(high, low + interval '24 hours');
    done := parent || to_char(low AT TIME ZONE 'UTC', '_YYYYMMDD');
  END IF;
  EXECUTE format('ALTER TABLE webhookd.%I DETACH PARTITION webhookd.%I', parent, main);
  EXECUTE format('ALTER TABLE webhookd.%I RENAME TO %I', main, done);
  EXECUTE format('CREATE TABLE webhookd.%I (LIKE webhookd.%I INCLUDING ALL EXCLUDING CONSTRAINTS)', main, parent);
  IF parent = 'attempt' THEN EXECUTE format('ALTER TABLE webhookd.%I REPLICA IDENTITY FULL', main); END IF;
  EXECUTE format('WITH stray AS (DELETE FROM webhookd.%I WHERE %I < %L OR %I >= %L RETURNING %s) INSERT INTO webhookd.%I (%s) SELECT * FROM stray',
                 done, field, COALESCE(low, '-infinity'), field, high, fields, main, fields);
  FOR bound IN SELECT format('ALTER TABLE webhookd.%I ADD CONSTRAINT %I %s', main, k.conname, pg_get_constraintdef(k.oid)) FROM pg_constraint k
                 WHERE k.conrelid = to_regclass('webhookd.' || quote_ident(parent)) AND k.contype = 'c' ORDER BY k.conname LOOP
    EXECUTE bound;
  END LOOP;
  EXECUTE format('ALTER TABLE webhookd.%I ATTACH PARTITION webhookd.%I DEFAULT', parent, main);
  EXECUTE format('ALTER TABLE webhookd.%I ATTACH PARTITION webhookd.%I FOR VALUES FROM (%s) TO (%L)',
                 parent, done, COALESCE(quote_literal(low), 'MINVALUE'), high);
EXCEPTION
  WHEN lock_not_available THEN problem := 'a transaction that uses ' || parent || ' is open';
  WHEN duplicate_table THEN problem := done || ' is there already';
END $$;

-- Daily partitions (UTC) ahead, a dated one for rows that fell into DEFAULT while nobody made any, and an end for what is past its time. Gives
-- what was done, and what could not be with the reason. A lock is waited for 50 ms, since INSERTs queue up behind whoever waits.
-- DEFAULT is not emptied row by row: it becomes a dated partition, whole, and an empty one takes its place. Postgres reads it once for that, while
-- INSERTs wait, so one that is large is left to the operator, who calls with `large`.
-- One piece of the work at a time, so that no lock is held for long; whoever has the time calls it again until it gives no row
-- without a problem. With the owner's rights, so that a daemon's role, or a job's, needs none of its own; hence the bounds of what it is told, those
-- of [retention]: nobody empties what is still written to, or makes partitions without end.
CREATE OR REPLACE FUNCTION webhookd.maintain(events interval DEFAULT '7 days', attempts interval DEFAULT '7 days', days int DEFAULT 30,
                                             large boolean DEFAULT false, only_partitions boolean DEFAULT false) RETURNS TABLE (done text, problem text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms'
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  today date := (now() AT TIME ZONE 'UTC')::date;
  most bigint := CASE WHEN large THEN 9e18 ELSE 32 * 1024 ^ 2 END;
  parent text;
  day date;
  held boolean;
  made boolean := false;
  busy text[] := '{}';
  swept bigint;
BEGIN
  IF (now() - events <= now() - interval '1 day' AND now() - attempts <= now() - interval '1 day') IS NOT TRUE THEN  -- a month has no length of its own
    RAISE invalid_parameter_value USING MESSAGE = 'events and attempts are kept for a day at least: write maintain(events => ''7 days'')';
  END IF;
  IF (days BETWEEN 1 AND 366) IS NOT TRUE THEN
    RAISE invalid_parameter_value USING MESSAGE = 'partitions can be made for 1 to 366 days ahead: write maintain(days => 30)';
  END IF;
  IF NOT webhookd.try_lock_tables() THEN RETURN; END IF;  -- another is at it, or migrates
  -- First what fell into DEFAULT, as long as it is there the days it holds cannot be made.
  FOREACH parent IN ARRAY ARRAY['outbox', 'attempt'] LOOP
    EXECUTE format('SELECT EXISTS (SELECT FROM webhookd.%I)', parent || '_default') INTO held;
    CONTINUE WHEN NOT held;
    IF pg_relation_size(format('webhookd.%I', parent || '_default')) > most THEN
      done := parent || '_default';
      problem := format('it has %s of rows that no partition was there for: run `webhookd maintain --large` when INSERTs may wait for some seconds',
                        pg_size_pretty(pg_relation_size(format('webhookd.%I', done))));
      RETURN NEXT;
    ELSE
      SELECT s.done, s.problem INTO done, problem FROM webhookd.swap_default(parent) s;
      RETURN NEXT;
      IF problem IS NULL THEN RETURN; END IF;
      busy := busy || parent;
    END IF;
  END LOOP;
  FOREACH parent IN ARRAY ARRAY['outbox', 'attempt'] LOOP
    -- Each day that is attached reads DEFAULT through, and locks it until the end of this transaction.
    CONTINUE WHEN parent = ANY (busy) OR pg_relation_size(format('webhookd.%I', parent || '_default')) > most;
    FOR day IN SELECT today + i FROM generate_series(0, days - 1) i LOOP
      done := parent || to_char(day, '_YYYYMMDD');
      CONTINUE WHEN EXISTS (SELECT FROM webhookd.partitions(parent) p
                             WHERE p.since < (day + 1)::timestamp AT TIME ZONE 'UTC' AND p.until > day::timestamp AT TIME ZONE 'UTC');
      problem := NULL;
      BEGIN
        -- No CHECK of its own: an empty table has nothing to scan, and the check would be made at every INSERT.
        EXECUTE format('CREATE TABLE webhookd.%I (LIKE webhookd.%I INCLUDING ALL)', done, parent);
        IF parent = 'attempt' THEN EXECUTE format('ALTER TABLE webhookd.%I REPLICA IDENTITY FULL', done); END IF;
        EXECUTE format('ALTER TABLE webhookd.%I ATTACH PARTITION webhookd.%I FOR VALUES FROM (%L) TO (%L)',
                       parent, done, day || ' 00:00:00+00', day + 1 || ' 00:00:00+00');
      EXCEPTION
        WHEN check_violation THEN problem := 'rows of that day are in ' || parent || '_default';
        WHEN lock_not_available THEN problem := parent || '_default is in use';
      END;
      RETURN NEXT;
      made := made OR problem IS NULL;
      EXIT WHEN problem LIKE '%in use';  -- once is enough of a stall; the next run tries again
    END LOOP;
  END LOOP;
  IF made OR only_partitions THEN RETURN; END IF;
  FOR done, problem IN SELECT e.done, e.problem FROM webhookd.expire('outbox', events) e LOOP
    RETURN NEXT;
    IF problem IS NULL THEN RETURN; END IF;
  END LOOP;
  FOR done, problem IN SELECT e.done, e.problem FROM webhookd.expire('attempt', attempts) e LOOP
    RETURN NEXT;
    IF problem IS NULL THEN RETURN; END IF;
  END LOOP;
  swept := webhookd.sweep(events);
  IF swept > 0 THEN
    done := format('deleted %s old rows', swept);
    problem := NULL;
    RETURN NEXT;
  END IF;
END $$;

-- What an event waits in before it is read. Whose turn it is, the first 255 characters of a tenant tell: a row that is older than the bound may have more
-- than an index takes.
CREATE OR REPLACE FUNCTION webhookd.part_of_transaction(p_xid xid8, p_after bigint, p_most int)
RETURNS TABLE (xid xid8, id bigint, created_at timestamptz, deliver_after timestamptz, tenant text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$  -- stable: as its caller sees it, in the same snapshot
BEGIN
  RETURN QUERY SELECT o.xid, o.id, o.created_at, o.deliver_after, left(o.tenant, 255) FROM webhookd.outbox o WHERE o.xid = p_xid AND o.id > p_after ORDER BY o.id LIMIT p_most;
END $$;

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
    SELECT o.id, o.created_at, o.deliver_after, left(o.tenant, 255) AS tenant FROM webhookd.outbox o LEFT JOIN held h USING (id)
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
  -- Logical replication copies rows, not how far sequences are, and no number may be given twice.
  PERFORM setval(q.sequence, q.newest) FROM (VALUES
    ('webhookd.outbox_id_seq'::regclass, (SELECT max(o.id) FROM webhookd.outbox o)),
    ('webhookd.daemon_id_seq', (SELECT max(d.id) FROM webhookd.daemon d)),
    (pg_get_serial_sequence('webhookd.endpoint', 'id')::regclass, (SELECT max(e.id) FROM webhookd.endpoint e)),
    (pg_get_serial_sequence('webhookd.replay', 'id')::regclass, (SELECT max(r.id) FROM webhookd.replay r))) q(sequence, newest)
   WHERE q.newest > COALESCE(pg_sequence_last_value(q.sequence), 0);
  DELETE FROM webhookd.binding;
  INSERT INTO webhookd.binding (system_identifier, environment) SELECT system_identifier::text, rebase.environment FROM pg_control_system();
END $$;
