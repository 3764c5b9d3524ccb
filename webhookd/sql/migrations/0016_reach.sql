-- Days ahead that lie behind a gap say nothing; and rows that are older than the bounds of the outbox stand in nobody's way.

-- As before; `days_ahead` ends at the first day that has no partition.
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
         WHERE c.relnamespace = to_regnamespace('webhookd') AND c.relkind = 'r') AS bytes,
       (SELECT count(*) FROM webhookd.unreadable) AS unreadable_events,
       (SELECT string_agg(DISTINCT d.problem, '; ') FROM webhookd.daemon d
         WHERE d.stopped_at IS NULL AND d.beat_at > now() - interval '15 s') AS problems;

-- Functions as they are, but for statements that write an old row anew, and so ask again what its constraints have let pass as NOT VALID. DEFAULT gets
-- its constraints when the rows that it is to have are there; `rebase` goes without any for the statement.
DO $migration$
DECLARE
  change record;
  before text;
  after text;
BEGIN
  FOR change IN SELECT * FROM (VALUES
    ('webhookd.swap_default(text)', E'DECLARE\n', E'DECLARE\n  bound text;\n'),
    ('webhookd.rebase(text,text)', E'DECLARE\n', E'DECLARE\n  bounds text[];\n  unbounds text[];\n'),
    ('webhookd.swap_default(text)',
     $old$  EXECUTE format('CREATE TABLE webhookd.%I PARTITION OF webhookd.%I DEFAULT', main, parent);
$old$,
     $new$  EXECUTE format('CREATE TABLE webhookd.%I (LIKE webhookd.%I INCLUDING ALL EXCLUDING CONSTRAINTS)', main, parent);
$new$),
    ('webhookd.swap_default(text)',
     $old$  EXECUTE format('ALTER TABLE webhookd.%I ATTACH PARTITION webhookd.%I FOR VALUES$old$,
     $new$  FOR bound IN SELECT format('ALTER TABLE webhookd.%I ADD CONSTRAINT %I %s', main, k.conname, pg_get_constraintdef(k.oid)) FROM pg_constraint k
                 WHERE k.conrelid = to_regclass('webhookd.' || quote_ident(parent)) AND k.contype = 'c' ORDER BY k.conname LOOP
    EXECUTE bound;
  END LOOP;
  EXECUTE format('ALTER TABLE webhookd.%I ATTACH PARTITION webhookd.%I DEFAULT', parent, main);
  EXECUTE format('ALTER TABLE webhookd.%I ATTACH PARTITION webhookd.%I FOR VALUES$new$),
    ('webhookd.rebase(text,text)',
     $old$  UPDATE webhookd.outbox SET xid = '0' WHERE xid >= pg_snapshot_xmax(here) OR xid = ANY (running);
$old$,
     $new$  BEGIN
    UPDATE webhookd.outbox SET xid = '0' WHERE xid >= pg_snapshot_xmax(here) OR xid = ANY (running);
  EXCEPTION WHEN check_violation THEN
    SELECT array_agg(format('ADD CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid)) ORDER BY k.conname),
           array_agg(format('DROP CONSTRAINT %I', k.conname)) INTO bounds, unbounds FROM pg_constraint k
     WHERE k.conrelid = 'webhookd.outbox'::regclass AND k.contype = 'c' AND NOT k.convalidated;
    EXECUTE 'ALTER TABLE webhookd.outbox ' || array_to_string(unbounds, ', ');
    UPDATE webhookd.outbox SET xid = '0' WHERE xid >= pg_snapshot_xmax(here) OR xid = ANY (running);
    EXECUTE 'ALTER TABLE webhookd.outbox ' || array_to_string(bounds, ', ');
  END;
$new$)
  ) changes LOOP
    before := pg_catalog.pg_get_functiondef(change.column1::regprocedure);
    after := replace(before, change.column2, change.column3);
    IF after = before THEN RAISE EXCEPTION '% is not what this changes', change.column1; END IF;
    EXECUTE after;
  END LOOP;
END $migration$;
