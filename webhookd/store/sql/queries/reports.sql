-- name: emit
-- The function for who may or can only call one.
SELECT webhookd.emit($1, $2, tenant => $3, ordering_key => $4, metadata => $5, event_id => $6, deliver_after => $7);

-- name: insert
-- What an application does.
INSERT INTO webhookd.outbox (type, payload) VALUES ($1, $2) RETURNING event_id;

-- name: status_waiting
-- Committed events that no batch holds yet, and the age of the oldest.
WITH last AS MATERIALIZED (SELECT pos_xmax, pos_xip FROM webhookd.batch ORDER BY id DESC LIMIT 1),
fresh AS (
  SELECT o.created_at FROM webhookd.outbox o WHERE o.xid >= (SELECT pos_xmax FROM last)
  UNION ALL
  SELECT o.created_at FROM last, unnest(last.pos_xip) u(x) CROSS JOIN LATERAL
    (SELECT i.created_at FROM webhookd.outbox i WHERE i.xid = u.x OFFSET 0) o
  UNION ALL
  SELECT o.created_at FROM webhookd.remainder r CROSS JOIN LATERAL
    (SELECT i.created_at FROM webhookd.outbox i WHERE i.xid = r.xid AND i.id > r.after_id OFFSET 0) o)
SELECT (SELECT count(*) FROM fresh) + (SELECT COALESCE(sum(cardinality(ids)), 0) FROM webhookd.surplus)::bigint,
       extract(epoch FROM now() - LEAST((SELECT min(created_at) FROM fresh WHERE isfinite(created_at)), (SELECT min(lo) FROM webhookd.surplus WHERE isfinite(lo))))::float8;

-- name: status_scheduled
-- Events that are to be delivered later, and when the first is due.
SELECT count(*), extract(epoch FROM min(due) FILTER (WHERE isfinite(due)) - now())::float8 FROM webhookd.scheduled;

-- name: status_health
-- What a monitoring system sees.
SELECT owed_seconds, rows_in_default, days_ahead, cursor_seconds, oldest_event_seconds, bytes, unreadable_events,
       exhausted_deliveries, exhausted_ranges, snapshot_seconds, snapshot_holder FROM webhookd.health;

-- name: status_open
-- Batches that are not done, their events, and the age of the oldest.
SELECT count(*), COALESCE(sum(cardinality(outbox_ids)), 0)::bigint, extract(epoch FROM now() - min(cut_at))::float8
  FROM webhookd.batch
 WHERE done_at IS NULL AND id > COALESCE((SELECT max(low) FROM webhookd.daemon), 0);

-- name: status_daemons
-- Who beats.
SELECT id, host, version, config_hash, extract(epoch FROM now() - beat_at)::float8, config_problem, problem
  FROM webhookd.daemon WHERE stopped_at IS NULL AND beat_at > now() - $1 * interval '1 s' ORDER BY id;

-- name: status_silent
-- Who has not been heard for a while, and has said what is wrong.
SELECT id, host, version, config_hash, extract(epoch FROM now() - beat_at)::float8, NULL, problem
  FROM webhookd.daemon
 WHERE stopped_at IS NULL AND problem IS NOT NULL AND beat_at <= now() - $1 * interval '1 s' AND beat_at > now() - interval '1 hour'
 ORDER BY id DESC LIMIT 10;

-- name: status_endpoints
-- The backlog by endpoint and state, what of the log it has parked and missed, and the attempts of the last minute, which the index of each endpoint leads to.
-- What has never been tried waits.
SELECT p.tenant, p.name,
       COALESCE(b.waiting, 0), COALESCE(b.retrying, 0), COALESCE(b.held, 0), COALESCE(b.undecided, 0), COALESCE(b.exhausted, 0), COALESCE(b.rejected, 0),
       CASE WHEN k.fails > 0 THEN extract(epoch FROM k.retry_at - now())::float8 ELSE b.due_in END,
       m.delivered, m.failed, k.endpoint_id IS NOT NULL, extract(epoch FROM now() - c.cut_at)::float8,
       COALESCE(s.parked, 0), COALESCE(s.parked_more, false), COALESCE(s.missed, 0), COALESCE(s.missed_more, false),
       p.spec ->> 'active' IS DISTINCT FROM 'false', p.removed_at IS NOT NULL, p.disabled_at IS NOT NULL, p.paused_at IS NOT NULL, COALESCE(k.fails > 0, false)
  FROM webhookd.endpoint p
  LEFT JOIN webhookd.parked k ON k.endpoint_id = p.id AND k.to_batch IS NULL
  LEFT JOIN webhookd.batch c ON c.id = k.next_batch
  LEFT JOIN (SELECT endpoint_id,
                    count(*) FILTER (WHERE state = 'retry' AND attempts = 0 AND last_error IS NULL) AS waiting,
                    count(*) FILTER (WHERE state = 'retry' AND (attempts > 0 OR last_error IS NOT NULL)) AS retrying,
                    count(*) FILTER (WHERE state = 'held') AS held,
                    count(*) FILTER (WHERE state = 'held' AND NOT isfinite(due)) AS undecided,
                    count(*) FILTER (WHERE state = 'exhausted') AS exhausted,
                    count(*) FILTER (WHERE state = 'rejected') AS rejected,
                    extract(epoch FROM min(due) FILTER (WHERE state = 'retry') - now())::float8 AS due_in
               FROM webhookd.backlog GROUP BY endpoint_id) b ON b.endpoint_id = p.id
  LEFT JOIN webhookd.count_aside($1) s ON s.endpoint_id = p.id
 CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE a.ok) AS delivered, count(*) FILTER (WHERE NOT a.ok) AS failed
                       FROM webhookd.attempt a
                      WHERE a.endpoint_id = p.id AND a.at > now() - interval '1 minute') m
 WHERE p.removed_at IS NULL OR b.endpoint_id IS NOT NULL OR s.parked > 0 OR s.parked_more
 ORDER BY p.tenant, p.name;

-- name: deployed
-- The endpoints of the files that run.
SELECT tenant, name, spec FROM webhookd.endpoint WHERE source = 'file' AND removed_at IS NULL;

-- name: made_by_api
-- What the endpoints subscribe to that tenants have made.
SELECT tenant, name, spec -> 'events', spec -> 'filter', spec -> 'data_filter', spec ->> 'active' IS DISTINCT FROM 'false' FROM webhookd.endpoint
 WHERE source = 'api' AND removed_at IS NULL ORDER BY tenant, name;

-- name: subscribers_of
-- What the endpoints subscribe to that get events of a tenant.
SELECT tenant, name, spec -> 'events', spec -> 'filter', spec -> 'data_filter', spec ->> 'active' IS DISTINCT FROM 'false' FROM webhookd.endpoint
 WHERE tenant IN ($1, '*') AND removed_at IS NULL ORDER BY tenant, name;

-- name: subscribers
-- What the endpoints that are owed new events subscribe to; paused ones are owed them, too.
SELECT tenant, name, spec -> 'events', spec -> 'filter', spec -> 'data_filter' FROM webhookd.endpoint
 WHERE removed_at IS NULL AND disabled_at IS NULL AND spec ->> 'active' IS DISTINCT FROM 'false';

-- name: events_of
-- The events of an id: one, unless the application gave it twice. Moments that a datetime cannot be are shown as the nearest that one can, here and
-- in listings.
SELECT id, event_id, LEAST(GREATEST(created_at, '0001-01-02 00:00:00+00'), '9999-12-30 00:00:00+00'), type, tenant, ordering_key, metadata,
       LEAST(GREATEST(occurred_at, '0001-01-02 00:00:00+00'), '9999-12-30 00:00:00+00'), size, 0
  FROM webhookd.outbox WHERE event_id = $1 ORDER BY id;

-- name: payload_of
-- The payload of an event, unless it is too large to be looked into.
SELECT (SELECT CASE WHEN size <= $2 THEN payload END FROM webhookd.outbox WHERE id = $1);

-- name: sees_metadata
-- Whether this role may read what filters look at.
SELECT has_column_privilege('webhookd.outbox', 'metadata', 'SELECT');

-- name: events_without_metadata
-- The events of an id, for a role that may not.
SELECT id, event_id, LEAST(GREATEST(created_at, '0001-01-02 00:00:00+00'), '9999-12-30 00:00:00+00'), type, tenant, ordering_key, NULL::json,
       LEAST(GREATEST(occurred_at, '0001-01-02 00:00:00+00'), '9999-12-30 00:00:00+00'), size, 0
  FROM webhookd.outbox WHERE event_id = $1 ORDER BY id;

-- name: ids_of
-- The same where a row is damaged: what stands in the index.
SELECT id, event_id, 'epoch'::timestamptz, '', '', NULL::text, NULL::json, NULL::timestamptz, 0, 0 FROM webhookd.outbox WHERE event_id = $1 ORDER BY id;

-- name: fates
-- What became of them; the next attempt where the endpoint is sent to.
SELECT outbox_id, endpoint, state, attempts, last_code, last_error,
       CASE WHEN state <> 'held' AND isfinite(due) AND NOT EXISTS (
         SELECT FROM webhookd.endpoint e WHERE endpoint = CASE e.tenant WHEN '' THEN e.name ELSE e.tenant || '/' || e.name END AND (e.removed_at IS NOT NULL
            OR e.paused_at IS NOT NULL OR e.disabled_at IS NOT NULL OR e.spec ->> 'active' = 'false')) THEN extract(epoch FROM due - now())::float8 END
  FROM webhookd.event_status($1);

-- name: mark
-- The newest event and batch, and the moment.
SELECT COALESCE((SELECT max(id) FROM webhookd.outbox), 0), (SELECT max(id) FROM webhookd.batch), now();

-- name: pulse
-- What each endpoint met since a moment.
SELECT p.id, a.delivered, a.failed, (SELECT count(*) FROM webhookd.backlog b WHERE b.endpoint_id = p.id AND b.state = 'retry'),
       l.code, l.error, a.p50
  FROM unnest($1::int[]) p(id)
 CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE ok) AS delivered, count(*) FILTER (WHERE NOT ok) AS failed,
                            percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) FILTER (WHERE at > now() - interval '1 minute') AS p50
                       FROM webhookd.attempt WHERE endpoint_id = p.id AND at >= $2) a
  LEFT JOIN LATERAL (SELECT code, error FROM webhookd.attempt WHERE endpoint_id = p.id AND at >= $2
                      ORDER BY at DESC LIMIT 1) l ON true;

-- name: events_since
-- How many events came after this one.
SELECT count(*) FROM webhookd.outbox WHERE id > $1;

-- name: unsettled
-- Events after this one that are in no batch that is done, and those that are to be tried again.
SELECT (SELECT count(*) FROM webhookd.outbox WHERE id > $1)
     - (SELECT count(DISTINCT o) FROM webhookd.batch b, unnest(b.outbox_ids) o WHERE b.id > $2 AND b.done_at IS NOT NULL AND o > $1)
     + (SELECT count(*) FROM webhookd.backlog WHERE outbox_id > $1 AND state IN ('retry', 'held'));

-- name: account
-- Each event after this one with each endpoint, and what is known of the pair: an event whose batch is not done still waits.
WITH delivered AS MATERIALIZED (
  SELECT DISTINCT outbox_id, endpoint_id FROM webhookd.attempt WHERE outbox_id > $1 AND ok),
settled AS MATERIALIZED (
  SELECT DISTINCT o AS id, b.id AS batch FROM webhookd.batch b, unnest(b.outbox_ids) o WHERE b.id > $2 AND b.done_at IS NOT NULL)
SELECT e.id, e.event_id, e.created_at, e.type, e.tenant, e.ordering_key, e.metadata, e.occurred_at, e.size, 0, p.id,
       CASE WHEN d.outbox_id IS NOT NULL THEN 'delivered' WHEN b.state = 'retry' THEN 'retrying' WHEN b.state IS NOT NULL THEN b.state
            WHEN s.id IS NULL THEN 'waiting'
            WHEN EXISTS (SELECT FROM webhookd.parked k WHERE k.endpoint_id = p.id AND s.batch >= k.next_batch AND (s.batch < k.to_batch OR k.to_batch IS NULL))
              THEN 'waiting' END
  FROM webhookd.outbox e CROSS JOIN unnest($3::int[]) p(id)
  LEFT JOIN delivered d ON d.outbox_id = e.id AND d.endpoint_id = p.id
  LEFT JOIN webhookd.backlog b ON b.outbox_id = e.id AND b.endpoint_id = p.id
  LEFT JOIN settled s ON s.id = e.id
 WHERE e.id > $1;

-- name: endpoint_ids
-- The numbers of the endpoints by name.
SELECT id, tenant, name FROM webhookd.endpoint WHERE removed_at IS NULL;
