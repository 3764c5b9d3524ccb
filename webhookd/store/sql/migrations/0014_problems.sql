-- What a monitoring system is told, besides: a reload that was refused, a daemon whose heartbeat is, and endpoints that are paused.
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
         WHERE e.removed_at IS NULL AND e.spec ->> 'active' IS DISTINCT FROM 'false' AND e.disabled_at IS NULL AND e.paused_at IS NOT NULL) AS paused_endpoints;
