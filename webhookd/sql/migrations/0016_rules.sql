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
