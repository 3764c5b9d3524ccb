-- What is kept for how long, and what a monitoring system can ask when every daemon is dead.

-- The dated partitions of a table, and what they hold: [from, to).
CREATE FUNCTION webhookd.partitions(parent text) RETURNS TABLE (name text, since timestamptz, until timestamptz)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT c.relname, CASE WHEN b.bound LIKE '%(MINVALUE)%' THEN '-infinity' ELSE (regexp_match(b.bound, 'FROM \(''([^'']+)''\)'))[1] END::timestamptz,
         (regexp_match(b.bound, 'TO \(''([^'']+)''\)'))[1]::timestamptz
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
   CROSS JOIN LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound) b
   WHERE i.inhparent = to_regclass('webhookd.' || quote_ident(parent)) AND b.bound <> 'DEFAULT'
$$;

-- Make DEFAULT a dated partition for the gap that one of its rows is in, and an empty one DEFAULT, which gets the rows of other gaps.
CREATE FUNCTION webhookd.swap_default(parent text, OUT done text, OUT problem text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  field text := CASE parent WHEN 'outbox' THEN 'created_at' ELSE 'at' END;
  main text := parent || '_default';
  fields text := (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
                   WHERE attrelid = to_regclass('webhookd.' || quote_ident(parent)) AND attnum > 0 AND NOT attisdropped AND attgenerated = '');
  some_row timestamptz;
  low timestamptz;
  high timestamptz;
BEGIN
  EXECUTE format('SELECT %I FROM webhookd.%I LIMIT 1', field, main) INTO some_row;
  SELECT max(p.until) INTO low FROM webhookd.partitions(parent) p WHERE p.until <= some_row;
  SELECT COALESCE(min(p.since), (GREATEST(now(), some_row) AT TIME ZONE 'UTC')::date::timestamp AT TIME ZONE 'UTC' + interval '1 day')
    INTO high FROM webhookd.partitions(parent) p WHERE p.since > some_row;
  done := format('%s_until_%s', parent, to_char(high AT TIME ZONE 'UTC', 'YYYYMMDD'));
  EXECUTE format('ALTER TABLE webhookd.%I DETACH PARTITION webhookd.%I', parent, main);
  EXECUTE format('ALTER TABLE webhookd.%I RENAME TO %I', main, done);
  EXECUTE format('CREATE TABLE webhookd.%I PARTITION OF webhookd.%I DEFAULT', main, parent);
  EXECUTE format('WITH stray AS (DELETE FROM webhookd.%I WHERE %I < %L OR %I >= %L RETURNING %s) INSERT INTO webhookd.%I (%s) SELECT * FROM stray',
                 done, field, COALESCE(low, '-infinity'), field, high, fields, main, fields);
  EXECUTE format('ALTER TABLE webhookd.%I ATTACH PARTITION webhookd.%I FOR VALUES FROM (%s) TO (%L)',
                 parent, done, COALESCE(quote_literal(low), 'MINVALUE'), high);
EXCEPTION
  WHEN lock_not_available THEN problem := 'a transaction that uses ' || parent || ' is open';
  WHEN duplicate_table THEN problem := done || ' is there already';
END $$;

-- Why this partition of the outbox must stay, or NULL. One rule for what may go: nothing that no batch has read, nothing of an open batch, nothing
-- scheduled, nothing of a running replay, nothing that is to be tried again.
CREATE FUNCTION webhookd.needed(part text, since timestamptz, until timestamptz) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  found boolean;
  newest bigint;
  low bigint := COALESCE((SELECT max(d.low) FROM webhookd.daemon d), 0);
BEGIN
  EXECUTE format('SELECT EXISTS (SELECT FROM webhookd.%I o WHERE o.xid >= $1 OR o.xid = ANY ($2)), max(o.id) FROM webhookd.%I o', part, part)
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

-- A cursor that lags behind what is kept goes on where that begins, and what it has not read is one row of `missed`.
CREATE FUNCTION webhookd.move_cursors(until timestamptz) RETURNS TABLE (endpoint_id int, from_batch bigint, to_batch bigint)
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
  WITH first_kept AS MATERIALIZED (
    SELECT COALESCE((SELECT min(b.id) FROM webhookd.batch b WHERE b.hi >= move_cursors.until), (SELECT max(id) + 1 FROM webhookd.batch)) AS id),
  moved AS (
    UPDATE webhookd.parked p SET next_batch = LEAST(f.id, COALESCE(p.to_batch, f.id)), next_pos = 0
      FROM first_kept f, webhookd.parked before
     WHERE before.endpoint_id = p.endpoint_id AND before.from_batch = p.from_batch AND p.next_batch < LEAST(f.id, COALESCE(p.to_batch, f.id))
    RETURNING p.endpoint_id, before.next_batch AS from_batch, p.next_batch AS to_batch)
  INSERT INTO webhookd.missed AS m (endpoint_id, from_batch, to_batch, reason)
  SELECT v.endpoint_id, v.from_batch, v.to_batch, 'retention' FROM moved v
  ON CONFLICT (endpoint_id, from_batch) DO UPDATE SET to_batch = GREATEST(m.to_batch, EXCLUDED.to_batch)
  RETURNING m.endpoint_id, m.from_batch, m.to_batch
$$;

-- The oldest partition that is past its time: emptied first, which only locks itself, and dropped by the next call.
CREATE FUNCTION webhookd.expire(parent text, keep interval) RETURNS TABLE (done text, problem text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  part record;
  filled boolean;
BEGIN
  FOR part IN SELECT p.* FROM webhookd.partitions(parent) p WHERE p.until <= now() - keep ORDER BY p.until LOOP
    done := part.name;
    problem := NULL;
    BEGIN
      EXECUTE format('LOCK TABLE webhookd.%I IN ACCESS EXCLUSIVE MODE', part.name);  -- nobody adds to what we are about to judge
      EXECUTE format('SELECT EXISTS (SELECT FROM webhookd.%I)', part.name) INTO filled;
      IF filled AND parent = 'outbox' THEN
        problem := webhookd.needed(part.name, part.since, part.until);
        IF problem IS NULL THEN
          FOR done, problem IN SELECT 'endpoint ' || m.endpoint_id, format('its cursor was moved past batches %s to %s', m.from_batch, m.to_batch - 1)
                                 FROM webhookd.move_cursors(part.until) m LOOP
            RETURN NEXT;
          END LOOP;
          done := part.name;
          problem := NULL;
        END IF;
      ELSIF filled AND EXISTS (SELECT FROM webhookd.batch b WHERE b.done_at IS NULL AND b.lo < part.until + interval '1 min'
                                  AND b.id > COALESCE((SELECT max(d.low) FROM webhookd.daemon d), 0)) THEN
        problem := 'a daemon that takes over a batch would look into it';
      END IF;
      IF problem IS NULL THEN
        EXECUTE format(CASE WHEN filled THEN 'TRUNCATE webhookd.%I' ELSE 'DROP TABLE webhookd.%I' END, part.name);
        done := CASE WHEN filled THEN 'emptied ' ELSE 'dropped ' END || part.name;
      END IF;
    EXCEPTION WHEN lock_not_available THEN
      problem := 'a transaction that uses ' || parent || ' is open';
    END;
    RETURN NEXT;
    EXIT WHEN problem IS NULL OR problem LIKE 'a transaction%';
  END LOOP;
END $$;

-- Rows that nothing refers to any longer, at most 10,000 of each kind: batches stay a day longer than events, and what ended badly as long as
-- its event. What an endpoint that is gone or inactive was owed ends with the time for which events are kept.
CREATE FUNCTION webhookd.sweep(events interval DEFAULT '7 days') RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  oldest timestamptz := LEAST(now() - events, (SELECT o.created_at FROM webhookd.outbox o ORDER BY o.id LIMIT 1));
  first bigint := COALESCE((SELECT o.id FROM webhookd.outbox o ORDER BY o.id LIMIT 1), 9e18);
  kept bigint := LEAST((SELECT b.id FROM webhookd.batch b WHERE b.hi >= oldest - interval '1 day' ORDER BY b.hi LIMIT 1), (SELECT max(b.id) FROM webhookd.batch b), (SELECT max(d.low) + 1 FROM webhookd.daemon d),
                       (SELECT min(p.next_batch) FROM webhookd.parked p), (SELECT min(r.next_batch) FROM webhookd.replay r WHERE r.state = 'running'));
  swept bigint := 0;
  count bigint;
BEGIN
  IF NOT pg_try_advisory_xact_lock(7301, 0) THEN RETURN 0; END IF;
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
  DELETE FROM webhookd.missed m WHERE m.to_batch <= (SELECT min(b.id) FROM webhookd.batch b);
  DELETE FROM webhookd.downtime t WHERE t.ended_at < now() - interval '90 days';
  RETURN swept;
END $$;

-- Daily partitions (UTC) ahead, a dated one for rows that fell into DEFAULT while nobody made any, and an end for what is past its time. Gives
-- what was done, and what could not be with the reason. A lock is waited for 50 ms, since INSERTs queue up behind whoever waits.
-- DEFAULT is not emptied row by row: it becomes a dated partition, whole, and an empty one takes its place. Postgres reads it once for that, while
-- INSERTs wait, so one that is large is left to the operator, who calls with `large`.
-- One piece of the work at a time, so that no lock is held for long; whoever has the time calls it again until it gives no row
-- without a problem. With the owner's rights, so that a daemon's role, or a job's, needs none of its own.
CREATE FUNCTION webhookd.maintain(events interval DEFAULT '7 days', attempts interval DEFAULT '7 days', days int DEFAULT 30,
                                  large boolean DEFAULT false, only_partitions boolean DEFAULT false) RETURNS TABLE (done text, problem text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
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
  IF NOT pg_try_advisory_xact_lock(7301, 0) THEN RETURN; END IF;  -- another is at it, or migrates
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

-- What `webhookd migrate`, and daemons of the version before, call.
CREATE OR REPLACE FUNCTION webhookd.make_partitions(days int) RETURNS TABLE (partition text, problem text)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT m.done, m.problem FROM webhookd.maintain(days => make_partitions.days, only_partitions => true) m
$$;

-- What became of an event, as before; one that nobody got since it was dropped from the log is `missed`, with the reason.
CREATE OR REPLACE FUNCTION webhookd.event_status(event_id text)
RETURNS TABLE (outbox_id bigint, endpoint text, state text, attempts int, last_code smallint, last_error text,
               due timestamptz, last_attempt_at timestamptz)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH event AS MATERIALIZED (
    SELECT o.id, o.created_at, o.deliver_after FROM webhookd.outbox o WHERE o.event_id = event_status.event_id),
  tried AS MATERIALIZED (
    SELECT DISTINCT ON (a.outbox_id, a.endpoint_id) a.outbox_id, a.endpoint_id, a.at, a.code, a.error,
           max(a.attempt) OVER w AS attempts, bool_or(a.ok) OVER w AS ok
    FROM event e CROSS JOIN LATERAL (SELECT * FROM webhookd.attempt t WHERE t.outbox_id = e.id) a
    WINDOW w AS (PARTITION BY a.outbox_id, a.endpoint_id)
    ORDER BY a.outbox_id, a.endpoint_id, a.at DESC),
  owed AS MATERIALIZED (
    SELECT b.* FROM event e CROSS JOIN LATERAL (SELECT * FROM webhookd.backlog t WHERE t.outbox_id = e.id) b),
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
  SELECT e.id, NULL,
         CASE WHEN b.id IS NULL THEN 'waiting' WHEN b.done_at IS NULL THEN 'sending' WHEN m.reason IS NULL THEN 'unmatched' ELSE 'missed' END,
         0, NULL, m.reason, CASE WHEN b.id IS NULL THEN e.deliver_after END, NULL
  FROM event e
  LEFT JOIN LATERAL (  -- the index on hi leads to the first batch that can hold it, which is nearly always the one
    SELECT c.id, c.done_at FROM webhookd.batch c
    WHERE c.hi >= e.created_at AND c.lo <= e.created_at AND e.id = ANY (c.outbox_ids)
      AND NOT EXISTS (SELECT FROM webhookd.scheduled s WHERE s.due = e.deliver_after AND s.outbox_id = e.id)
    ORDER BY c.hi LIMIT 1) b ON true
  LEFT JOIN LATERAL (SELECT r.reason FROM webhookd.missed r WHERE b.id >= r.from_batch AND b.id < r.to_batch LIMIT 1) m ON true
  WHERE NOT EXISTS (SELECT FROM known k WHERE k.outbox_id = e.id)
  ORDER BY 1, 2
$$;

-- Rows that no partition was there for, counted no further than it needs to be alarming. By name and not in the view itself, which would follow the
-- table that was DEFAULT, and keep it from being dropped.
CREATE FUNCTION webhookd.rows_in_default() RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT count(*) FROM (SELECT FROM webhookd.outbox_default LIMIT 100000) d)
       + (SELECT count(*) FROM (SELECT FROM webhookd.attempt_default LIMIT 100000) d);
END $$;

-- For a monitoring system, also when every daemon is dead: one row, with seconds and bytes. USAGE on the schema and SELECT on the view are all it
-- needs.
CREATE VIEW webhookd.health AS
WITH last AS MATERIALIZED (SELECT b.pos_xmax, b.pos_xip FROM webhookd.batch b ORDER BY b.id DESC LIMIT 1),
unread AS (
  SELECT o.created_at FROM webhookd.outbox o WHERE o.xid >= (SELECT pos_xmax FROM last)
  UNION ALL
  SELECT o.created_at FROM last, unnest(last.pos_xip) u(x) CROSS JOIN LATERAL
    (SELECT i.created_at FROM webhookd.outbox i WHERE i.xid = u.x OFFSET 0) o),
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

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA webhookd FROM PUBLIC;
GRANT EXECUTE ON FUNCTION webhookd.partitions(text), webhookd.rows_in_default() TO PUBLIC;  -- whoever reads the view calls them
