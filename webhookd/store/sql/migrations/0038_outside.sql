-- What a monitoring system is told, besides: what was given up within the last hour, how old what is owed and sent is, and who holds back the snapshot.

-- The transaction that is open for the longest, prepared ones included, but for those that hold nothing back. Nobody may see since when one of another role
-- runs, unless the owner of the schema is a member of that or of pg_read_all_stats. Where there is none of over a minute, what keeps rows for replication,
-- of which nobody knows since when.
CREATE FUNCTION webhookd.held_snapshot(OUT seconds float8, OUT holder text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  SELECT extract(epoch FROM clock_timestamp() - t.since)::float8, t.who
    FROM (SELECT a.xact_start AS since,
                 'process ' || a.pid || COALESCE(' of ' || a.usename, '') || COALESCE(' (' || NULLIF(a.application_name, '') || ')', '') || COALESCE(', ' || a.state, '') AS who
            FROM pg_stat_activity a
           WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend' AND a.xact_start IS NOT NULL
             AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.pid NOT IN (SELECT v.pid FROM pg_stat_progress_vacuum v)
          UNION ALL
          SELECT p.prepared, 'prepared transaction ' || quote_literal(p.gid) FROM pg_prepared_xacts p WHERE p.database = current_database()
          UNION ALL
          SELECT NULL, 'replication slot ' || quote_ident(s.slot_name) FROM pg_replication_slots s WHERE GREATEST(age(s.xmin), age(s.catalog_xmin)) > 100000
          UNION ALL
          SELECT NULL, 'the standby of process ' || a.pid || COALESCE(' (' || NULLIF(a.application_name, '') || ')', '')
            FROM pg_stat_activity a WHERE a.backend_type = 'walsender' AND age(a.backend_xmin) > 100000) t
   ORDER BY CASE WHEN t.since <= clock_timestamp() - interval '1 min' THEN 0 WHEN t.since IS NULL THEN 1 ELSE 2 END, t.since LIMIT 1
$$;

-- Events of the log that endpoints have not come to, as `count_aside` counts them, of those alone: the more of them there are, the fewer it looks at of each,
-- and beyond so many at none.
CREATE FUNCTION webhookd.count_parked(most int)
RETURNS TABLE (endpoint_id int, parked bigint, more boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  WITH ranges AS MATERIALIZED (  -- of batches: from `first`, and of that one what stands behind `pos`, to before `until`, or to the end of the log
    SELECT k.endpoint_id, k.next_batch AS first, k.next_pos AS pos, k.to_batch AS until, row_number() OVER (ORDER BY k.next_batch, k.endpoint_id) AS n FROM webhookd.parked k
     WHERE k.reason <> 'disabled' AND (k.to_batch IS NULL OR k.next_batch < k.to_batch)),
  part AS MATERIALIZED (SELECT LEAST(1000, GREATEST(10, most / GREATEST(count(*), 1)))::int AS size FROM ranges),
  looked AS (
    SELECT r.endpoint_id, count(*) FILTER (WHERE e.owed) AS events,
           count(u.id) > p.size OR EXISTS (SELECT FROM webhookd.batch c WHERE c.id >= r.first + p.size AND (c.id < r.until OR r.until IS NULL)) AS more
      FROM (SELECT x.* FROM ranges x WHERE x.n <= most / 10) r JOIN webhookd.endpoint s ON s.id = r.endpoint_id CROSS JOIN part p
      LEFT JOIN LATERAL (
        SELECT x.id, b.lo, b.hi
          FROM (SELECT c.id, c.outbox_ids, c.lo, c.hi FROM webhookd.batch c WHERE c.id >= r.first AND (c.id < r.until OR r.until IS NULL)
                 ORDER BY c.id LIMIT p.size) b
         CROSS JOIN LATERAL unnest(b.outbox_ids) WITH ORDINALITY x(id, place)
         WHERE b.id > r.first OR x.place > r.pos LIMIT p.size + 1) u ON true
      LEFT JOIN LATERAL (
        SELECT true AS owed FROM webhookd.outbox o
         WHERE o.id = u.id AND o.created_at >= u.lo AND o.created_at <= u.hi AND s.tenant IN (o.tenant, '*')
           AND EXISTS (SELECT FROM jsonb_array_elements_text(s.spec -> 'events') x(pattern)
                        WHERE x.pattern = o.type OR x.pattern = '*' AND NOT starts_with(o.type, 'webhookd.')
                           OR x.pattern LIKE '%.*' AND starts_with(o.type, left(x.pattern, -1)))
           AND (COALESCE(s.spec -> 'filter', '{}') = '{}' OR webhookd.passes(s.spec -> 'filter', o.metadata))
           AND CASE WHEN o.own THEN CASE WHEN s.tenant = '' THEN s.name ELSE s.tenant || '/' || s.name END IS DISTINCT FROM o.metadata ->> 'endpoint' ELSE true END
           AND NOT EXISTS (SELECT FROM webhookd.unreadable n WHERE n.outbox_id = o.id)
           AND (NOT EXISTS (SELECT FROM webhookd.discard) OR NOT webhookd.is_discarded(o.type, o.tenant, o.created_at, s.id))
           AND NOT EXISTS (SELECT FROM webhookd.backlog w WHERE w.endpoint_id = s.id AND w.outbox_id = o.id) OFFSET 0) e ON true
     GROUP BY r.endpoint_id, r.first, r.until, p.size)
  SELECT l.endpoint_id, sum(l.events)::bigint, bool_or(l.more)
    FROM (SELECT w.endpoint_id, w.events, w.more FROM looked w UNION ALL SELECT r.endpoint_id, 0, true FROM ranges r WHERE r.n > most / 10) l
   GROUP BY l.endpoint_id
$$;

-- What has waited for its whole time behind an endpoint that fails ends: rows, and ranges of the log, of which some have only grown.
CREATE FUNCTION webhookd.give_up_apart(p int, by int, its_epoch int, before timestamptz, OUT deliveries bigint, OUT ranges bigint, OUT begun bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  first bigint;
  old bigint;
  last bigint;
  new bigint;
  held timestamptz;
BEGIN
  PERFORM webhookd.expect_read_committed();
  deliveries := 0;
  ranges := 0;
  begun := 0;
  PERFORM FROM webhookd.parked k WHERE k.endpoint_id = p AND k.to_batch IS NULL AND k.owner = by AND k.epoch = its_epoch AND k.fails > 0 FOR UPDATE;
  IF NOT FOUND THEN RETURN; END IF;
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
      begun := begun + 1;
      INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason) VALUES (p, old, new, 'exhausted') ON CONFLICT DO NOTHING;
      SELECT b.cut_at INTO held FROM webhookd.batch b WHERE b.id = old;
      PERFORM webhookd.tell('delivery.exhausted', p, json_build_object('reason', 'endpoint_failing', 'from_batch', old, 'since', held));
    END IF;
  END LOOP;
  WITH over AS (
    UPDATE webhookd.backlog w SET state = 'exhausted', last_error = 'endpoint_failing', due = now()
     WHERE w.endpoint_id = p AND w.state IN ('retry', 'held') AND w.due <= now() AND w.clock_from < before RETURNING w.outbox_id)
  SELECT count(*) INTO deliveries FROM over;
END $$;

CREATE OR REPLACE FUNCTION webhookd.give_up(p int, by int, its_epoch int, before timestamptz) RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  SELECT g.deliveries + g.ranges FROM webhookd.give_up_apart(p, by, its_epoch, before) g
$$;

REVOKE EXECUTE ON FUNCTION webhookd.count_parked(int) FROM PUBLIC;
-- Whoever reads the view calls the one, and a daemon of the version before the other, before its role is granted anything new.
GRANT EXECUTE ON FUNCTION webhookd.held_snapshot(), webhookd.give_up_apart(int, int, int, timestamptz) TO PUBLIC;

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
      FROM part p GROUP BY p.parent) t),
sent AS (SELECT e.id FROM webhookd.endpoint e
          WHERE e.removed_at IS NULL AND e.spec ->> 'active' IS DISTINCT FROM 'false' AND e.disabled_at IS NULL AND e.paused_at IS NULL)
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
       (SELECT string_agg(DISTINCT t.problem, '; ') FROM (
          SELECT d.problem FROM webhookd.daemon d WHERE d.stopped_at IS NULL AND d.beat_at > now() - interval '15 s'
          UNION ALL
          SELECT 'a reload was refused, and the old configuration goes on: ' || left(split_part(d.config_problem, chr(10), 1), 300)
            FROM webhookd.daemon d WHERE d.stopped_at IS NULL AND d.beat_at > now() - interval '15 s'
          UNION ALL
          SELECT 'daemon ' || d.id || ' is not heard: ' || d.problem FROM webhookd.daemon d
           WHERE d.stopped_at IS NULL AND d.beat_at <= now() - interval '15 s' AND d.beat_at > now() - interval '1 hour'
             AND starts_with(d.problem, 'its heartbeat waits')) t) AS problems,
       (SELECT count(*) FROM webhookd.backlog w WHERE w.state = 'exhausted' AND w.due > now() - interval '24 h') AS exhausted_deliveries,
       (SELECT count(*) FROM webhookd.missed m WHERE m.reason = 'exhausted' AND m.at > now() - interval '24 h') AS exhausted_ranges,
       (SELECT count(*) FROM webhookd.endpoint e JOIN webhookd.parked k ON k.endpoint_id = e.id AND k.to_batch IS NULL AND k.fails > 0
         WHERE e.removed_at IS NULL AND e.spec ->> 'active' IS DISTINCT FROM 'false' AND e.disabled_at IS NULL AND e.paused_at IS NULL) AS failing_endpoints,
       (SELECT count(*) FROM webhookd.endpoint e
         WHERE e.removed_at IS NULL AND e.spec ->> 'active' IS DISTINCT FROM 'false' AND e.disabled_at IS NOT NULL) AS disabled_endpoints,
       (SELECT count(DISTINCT d.config_hash) FROM webhookd.daemon d
         WHERE d.stopped_at IS NULL AND d.beat_at > now() - interval '15 s') AS configurations,
       (SELECT count(*) FROM webhookd.endpoint e
         WHERE e.removed_at IS NULL AND e.spec ->> 'active' IS DISTINCT FROM 'false' AND e.disabled_at IS NULL AND e.paused_at IS NOT NULL) AS paused_endpoints,
       (SELECT count(*) FROM webhookd.backlog w WHERE w.state = 'exhausted' AND w.due > now() - interval '1 h') AS exhausted_last_hour,
       (SELECT count(*) FROM webhookd.missed m WHERE m.reason IN ('exhausted', 'retention', 'unread') AND m.at > now() - interval '1 h') AS missed_last_hour,
       (SELECT extract(epoch FROM now() - min(o.since))::float8 FROM (
          SELECT min(w.outbox_at) AS since FROM webhookd.backlog w JOIN sent ON sent.id = w.endpoint_id WHERE w.state IN ('retry', 'held') AND isfinite(w.outbox_at)
          UNION ALL
          SELECT min(b.cut_at) FROM webhookd.parked k JOIN sent ON sent.id = k.endpoint_id JOIN webhookd.batch b ON b.id = k.next_batch
           WHERE k.to_batch IS NULL OR k.next_batch < k.to_batch) o) AS late_seconds,
       h.seconds AS snapshot_seconds,
       h.holder AS snapshot_holder
  FROM webhookd.held_snapshot() h;
