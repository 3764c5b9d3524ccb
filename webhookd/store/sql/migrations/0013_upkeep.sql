-- Partitions, what is swept, and what a monitoring system is told.

ALTER TABLE webhookd.outbox
  ADD CONSTRAINT "types that begin with webhookd. are those of our own events" CHECK (own OR NOT starts_with(type, 'webhookd.')) NOT VALID;

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

-- Why this partition of the outbox must stay, or NULL. One rule for what may go: nothing that no batch has read, be it surplus or what is left of a
-- transaction that is read in pieces, nothing of an open batch, nothing scheduled, nothing of a running replay, nothing that is to be tried again.
CREATE OR REPLACE FUNCTION webhookd.needed(part text, since timestamptz, until timestamptz) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
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

-- Rows that nothing refers to any longer, at most 10,000 of each kind: batches stay a day longer than events, and what ended badly, or could not be read,
-- as long as its event. What an endpoint that is gone or inactive was owed ends with the time for which events are kept.
CREATE OR REPLACE FUNCTION webhookd.sweep(events interval DEFAULT '7 days') RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  oldest timestamptz := LEAST(now() - events, (SELECT o.created_at FROM webhookd.outbox o WHERE isfinite(o.created_at) ORDER BY o.id LIMIT 1));
  first bigint := COALESCE((SELECT o.id FROM webhookd.outbox o ORDER BY o.id LIMIT 1), 9e18);
  kept bigint := LEAST((SELECT b.id FROM webhookd.batch b WHERE b.hi >= oldest - interval '1 day' ORDER BY b.hi LIMIT 1), (SELECT max(b.id) FROM webhookd.batch b), (SELECT max(d.low) + 1 FROM webhookd.daemon d),
                       (SELECT min(p.next_batch) FROM webhookd.parked p), (SELECT min(r.next_batch) FROM webhookd.replay r WHERE r.state = 'running'));
  swept bigint := 0;
  count bigint;
BEGIN
  IF (now() - events <= now() - interval '1 day') IS NOT TRUE THEN  -- a month has no length of its own
    RAISE invalid_parameter_value USING MESSAGE = 'events are kept for a day at least: write sweep(events => ''7 days'')';
  END IF;
  IF NOT webhookd.try_lock_tables() THEN RETURN 0; END IF;
  UPDATE webhookd.backlog b SET state = 'rejected', last_error = CASE WHEN p.removed_at IS NULL THEN 'endpoint_inactive' ELSE 'endpoint_removed' END
    FROM (SELECT w.endpoint_id, w.outbox_id, e.removed_at FROM webhookd.endpoint e JOIN webhookd.backlog w ON w.endpoint_id = e.id
           WHERE (e.removed_at IS NOT NULL OR e.spec ->> 'active' = 'false') AND w.state IN ('retry', 'held') AND w.outbox_at < now() - events
           LIMIT 10000) p
   WHERE b.endpoint_id = p.endpoint_id AND b.outbox_id = p.outbox_id;
  GET DIAGNOSTICS count = ROW_COUNT; swept := swept + count;
  DELETE FROM webhookd.backlog b USING (SELECT w.endpoint_id, w.outbox_id FROM webhookd.backlog w
     WHERE w.outbox_id < first AND w.state IN ('exhausted', 'rejected') AND w.outbox_at < oldest ORDER BY w.outbox_id LIMIT 10000) w
   WHERE b.endpoint_id = w.endpoint_id AND b.outbox_id = w.outbox_id;
  GET DIAGNOSTICS count = ROW_COUNT; swept := swept + count;
  DELETE FROM webhookd.batch b USING (SELECT c.id FROM webhookd.batch c
     WHERE c.id < kept AND c.done_at IS NOT NULL AND COALESCE(c.hi, c.cut_at) < oldest - interval '1 day' ORDER BY c.id LIMIT 10000) c
   WHERE b.id = c.id;
  GET DIAGNOSTICS count = ROW_COUNT; swept := swept + count;
  DELETE FROM webhookd.unreadable u WHERE u.outbox_id < first;
  DELETE FROM webhookd.missed m WHERE m.to_batch <= (SELECT min(b.id) FROM webhookd.batch b);
  DELETE FROM webhookd.downtime t WHERE t.ended_at < now() - interval '90 days';
  RETURN swept;
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

-- Those that stay as they are.
ALTER FUNCTION webhookd.partitions(text)
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on;
ALTER FUNCTION webhookd.move_cursors(timestamptz)
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on;
ALTER FUNCTION webhookd.expire(text, interval)
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on;
ALTER FUNCTION webhookd.make_partitions(int)
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on;
ALTER FUNCTION webhookd.rows_in_default()
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on;

-- What was given up lately is found without a look at what was given up before, or is owed.
CREATE INDEX backlog_exhausted ON webhookd.backlog (due) WHERE state = 'exhausted';

-- For a monitoring system, also when every daemon is dead: one row, with seconds and bytes. USAGE on the schema and SELECT on the view are all it
-- needs. Unread is also what is left of a transaction that is read in pieces, and the surplus. `days_ahead` ends at the first day that has no partition,
-- whatever lies behind it. Infinite moments say nothing. What was exhausted is that of the last 24 hours; `configurations` are those of live daemons.
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
part AS MATERIALIZED (SELECT t.parent, x.since, x.until FROM (VALUES ('outbox'), ('attempt')) t(parent) CROSS JOIN LATERAL webhookd.partitions(t.parent) x),
ahead AS (
  SELECT min(t.until) AS until FROM (
    SELECT CASE WHEN bool_or(p.since <= now() AND p.until > now())
                THEN min(p.until) FILTER (WHERE p.until > now() AND NOT EXISTS (SELECT FROM part q WHERE q.parent = p.parent AND q.since = p.until))
                ELSE COALESCE(max(p.until) FILTER (WHERE p.until <= now()), now()) END AS until
      FROM part p GROUP BY p.parent) t)
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
         WHERE c.relnamespace = to_regnamespace('webhookd') AND c.relkind = 'r' AND c.relname !~ '^lock_') AS bytes,  -- it waits for whoever locks a table
       (SELECT count(*) FROM webhookd.unreadable) AS unreadable_events,
       (SELECT string_agg(DISTINCT d.problem, '; ') FROM webhookd.daemon d
         WHERE d.stopped_at IS NULL AND d.beat_at > now() - interval '15 s') AS problems,
       (SELECT count(*) FROM webhookd.backlog w WHERE w.state = 'exhausted' AND w.due > now() - interval '24 h') AS exhausted_deliveries,
       (SELECT count(*) FROM webhookd.missed m WHERE m.reason = 'exhausted' AND m.at > now() - interval '24 h') AS exhausted_ranges,
       (SELECT count(*) FROM webhookd.endpoint e JOIN webhookd.parked k ON k.endpoint_id = e.id AND k.to_batch IS NULL AND k.fails > 0
         WHERE e.removed_at IS NULL AND e.spec ->> 'active' IS DISTINCT FROM 'false' AND e.disabled_at IS NULL AND e.paused_at IS NULL) AS failing_endpoints,
       (SELECT count(*) FROM webhookd.endpoint e
         WHERE e.removed_at IS NULL AND e.spec ->> 'active' IS DISTINCT FROM 'false' AND e.disabled_at IS NOT NULL) AS disabled_endpoints,
       (SELECT count(DISTINCT d.config_hash) FROM webhookd.daemon d
         WHERE d.stopped_at IS NULL AND d.beat_at > now() - interval '15 s') AS configurations;
