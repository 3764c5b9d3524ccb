-- name: overview_health
-- The numbers of the view, which says them without a daemon, too.
SELECT unread_events, unread_seconds, scheduled_events, open_batches, late_seconds, cursor_seconds, rows_in_default, days_ahead, live_daemons,
       configurations, bytes, unreadable_events, exhausted_last_hour, missed_last_hour, snapshot_seconds
  FROM webhookd.health;

-- name: overview_outbox
-- The partitions of the outbox with their indexes.
SELECT COALESCE(sum(pg_total_relation_size(t.relid)), 0)::bigint FROM pg_partition_tree('webhookd.outbox') t WHERE t.isleaf;

-- name: overview_backlog
-- Its rows by what they are; what has never been tried waits.
SELECT CASE WHEN b.state <> 'retry' THEN b.state WHEN b.attempts = 0 AND b.last_error IS NULL THEN 'waiting' ELSE 'retrying' END, count(*)
  FROM webhookd.backlog b GROUP BY 1;

-- name: overview_parked
-- Events of the log that endpoints have not come to, of some.
SELECT a.endpoint_id, a.parked, a.more FROM webhookd.count_parked($1) a WHERE a.parked > 0 OR a.more;

-- name: overview_states
-- A page of endpoints: what decides about their states.
SELECT p.id, '', '', p.spec ->> 'active' IS DISTINCT FROM 'false', p.disabled_at IS NOT NULL, p.paused_at IS NOT NULL, COALESCE(k.fails > 0, false), 0, NULL, NULL
  FROM webhookd.endpoint p LEFT JOIN webhookd.parked k ON k.endpoint_id = p.id AND k.to_batch IS NULL
 WHERE p.removed_at IS NULL AND p.id > $1 ORDER BY p.id LIMIT $2;

-- name: overview_endpoints
-- The same, with what each is owed: rows of the backlog, and since when; and how far its cursor is behind.
SELECT p.id, p.tenant, p.name, p.active, p.disabled, p.paused, COALESCE(k.fails > 0, false), b.owed,
       extract(epoch FROM now() - b.oldest)::float8, extract(epoch FROM now() - c.oldest)::float8
  FROM (SELECT e.id, e.tenant, e.name, e.spec ->> 'active' IS DISTINCT FROM 'false' AS active, e.disabled_at IS NOT NULL AS disabled, e.paused_at IS NOT NULL AS paused
          FROM webhookd.endpoint e WHERE e.removed_at IS NULL AND e.id > $1 ORDER BY e.id LIMIT $2) p
  LEFT JOIN webhookd.parked k ON k.endpoint_id = p.id AND k.to_batch IS NULL
 CROSS JOIN LATERAL (SELECT count(*) AS owed, min(w.outbox_at) FILTER (WHERE isfinite(w.outbox_at)) AS oldest
                       FROM webhookd.backlog w WHERE w.endpoint_id = p.id AND w.state IN ('retry', 'held')) b
  LEFT JOIN LATERAL (SELECT min(s.cut_at) AS oldest FROM webhookd.parked x JOIN webhookd.batch s ON s.id = x.next_batch
                      WHERE x.endpoint_id = p.id AND x.reason <> 'disabled' AND (x.to_batch IS NULL OR x.next_batch < x.to_batch)) c ON true
 ORDER BY p.id;
