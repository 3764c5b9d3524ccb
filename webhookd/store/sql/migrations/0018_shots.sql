-- What somebody wants to be sent now and once, whatever else is or is not sent to that endpoint: an event again, or a test. A daemon that has the endpoint in
-- its files takes the row, sends, and writes down what came of it. Of a test there is nothing else; the attempt of a resend is in the log of attempts, too.
CREATE TABLE webhookd.shot (
  id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind        text        NOT NULL,                   -- resend | test
  endpoint_id int         NOT NULL,
  outbox_id   bigint, outbox_at timestamptz,          -- of a resend
  event_id    text, type text, tenant text, payload json,  -- of a test
  by          text        NOT NULL,                   -- who wants it
  created_at  timestamptz NOT NULL DEFAULT now(),
  start_by    timestamptz NOT NULL,                   -- after that nobody takes it
  owner       int,                                    -- the daemon that sends it, once
  ends_at     timestamptz,                            -- by then that daemon has said what came of it, or never will
  done_at     timestamptz,
  ok          boolean,
  at          timestamptz,                            -- of the request; NULL when there was none
  code        smallint, ms int, error text,           -- as of an attempt
  request     json, response bytea                    -- of a test: what was sent, without secrets, and the first bytes of the answer
);
CREATE INDEX shot_open ON webhookd.shot (id) WHERE done_at IS NULL;
CREATE INDEX shot_outbox_id ON webhookd.shot (outbox_id);

ALTER TABLE webhookd.attempt ADD COLUMN trigger text;  -- what it was made for: NULL for the schedule, which costs nothing; resend

-- As before, but that a resend which failed changes nothing of what became of a delivery.
CREATE OR REPLACE FUNCTION webhookd.aside(ids bigint[], low timestamptz, high timestamptz, of_endpoint int DEFAULT NULL)
RETURNS TABLE (outbox_id bigint, endpoint_id int, state text, reason text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  WITH ranges AS MATERIALIZED (  -- of batches: from `first`, and of that one what stands behind `pos`, to before `until`, or to the end of the log
    SELECT k.endpoint_id, 'parked' AS state, k.reason, k.next_batch AS first, k.next_pos AS pos, k.to_batch AS until FROM webhookd.parked k
     WHERE k.reason <> 'disabled' AND (k.to_batch IS NULL OR k.next_batch < k.to_batch) AND (of_endpoint IS NULL OR k.endpoint_id = of_endpoint)
    UNION ALL
    SELECT k.endpoint_id, 'missed', k.reason, k.from_batch, 0, NULL FROM webhookd.parked k
     WHERE k.reason = 'disabled' AND k.to_batch IS NULL AND (of_endpoint IS NULL OR k.endpoint_id = of_endpoint)
    UNION ALL
    SELECT m.endpoint_id, 'missed', m.reason, m.from_batch, 0, m.to_batch FROM webhookd.missed m WHERE of_endpoint IS NULL OR m.endpoint_id = of_endpoint),
  subscribed AS MATERIALIZED (
    SELECT p.id, p.tenant, x.pattern, p.spec -> 'filter' AS filter, CASE WHEN p.tenant = '' THEN p.name ELSE p.tenant || '/' || p.name END AS label
      FROM webhookd.endpoint p CROSS JOIN LATERAL jsonb_array_elements_text(p.spec -> 'events') x(pattern) WHERE p.id IN (SELECT r.endpoint_id FROM ranges r)),
  event AS MATERIALIZED (
    SELECT o.id, o.created_at, o.deliver_after, o.type, o.tenant, o.metadata, o.own FROM webhookd.outbox o
     WHERE EXISTS (SELECT FROM ranges) AND o.id = ANY (ids) AND o.created_at >= low AND o.created_at <= high
       AND NOT EXISTS (SELECT FROM webhookd.unreadable u WHERE u.outbox_id = o.id)),
  wanted AS (  -- by each tenant and pattern that an endpoint may have for it, so that a type costs as much as it has subscribers
    SELECT e.id, t.tenant, c.pattern FROM event e
     CROSS JOIN LATERAL (SELECT e.tenant UNION SELECT '*') t(tenant)
     CROSS JOIN LATERAL (SELECT e.type UNION SELECT '*' WHERE NOT starts_with(e.type, 'webhookd.')
                         UNION SELECT left(e.type, n) || '*' FROM generate_series(1, length(e.type) - 1) n WHERE substr(e.type, n, 1) = '.') c(pattern)),
  owing AS MATERIALIZED (
    SELECT DISTINCT e.id AS event, s.id AS endpoint
      FROM wanted w JOIN subscribed s ON s.tenant = w.tenant AND s.pattern = w.pattern JOIN event e ON e.id = w.id
     WHERE COALESCE(s.filter, '{}') = '{}' OR webhookd.passes(s.filter, e.metadata)
    EXCEPT  -- nobody is told about itself
    SELECT e.id, s.id FROM event e JOIN subscribed s ON CASE WHEN e.own THEN s.label = e.metadata ->> 'endpoint' END),
  held AS MATERIALIZED (
    SELECT e.id AS event, b.id, b.place FROM event e CROSS JOIN LATERAL (  -- the index on hi leads to the first batch that can hold it, which is nearly always the one
      SELECT c.id, array_position(c.outbox_ids, e.id) AS place FROM webhookd.batch c
       WHERE c.hi >= e.created_at AND c.lo <= e.created_at AND e.id = ANY (c.outbox_ids)
         AND NOT EXISTS (SELECT FROM webhookd.scheduled s WHERE s.due = e.deliver_after AND s.outbox_id = e.id)
       ORDER BY c.hi LIMIT 1) b
     WHERE e.id IN (SELECT o.event FROM owing o))
  SELECT DISTINCT ON (o.event, o.endpoint) o.event, o.endpoint, r.state, r.reason
    FROM owing o JOIN held h ON h.event = o.event
    JOIN ranges r ON r.endpoint_id = o.endpoint AND (h.id > r.first OR h.id = r.first AND h.place > r.pos) AND (h.id < r.until OR r.until IS NULL)
   WHERE NOT EXISTS (SELECT FROM webhookd.backlog w WHERE w.endpoint_id = o.endpoint AND w.outbox_id = o.event)
     AND NOT EXISTS (SELECT FROM webhookd.attempt a WHERE a.outbox_id = o.event AND a.endpoint_id = o.endpoint AND (a.ok OR a.trigger IS DISTINCT FROM 'resend') AND a.at >= low - interval '1 min')
   ORDER BY o.event, o.endpoint, r.state DESC
$$;

CREATE OR REPLACE FUNCTION webhookd.event_status(event_id text)
RETURNS TABLE (outbox_id bigint, endpoint text, state text, attempts int, last_code smallint, last_error text,
               due timestamptz, last_attempt_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  WITH event AS MATERIALIZED (
    SELECT o.id, o.created_at, o.deliver_after FROM webhookd.outbox o WHERE o.event_id = event_status.event_id),
  tried AS MATERIALIZED (
    SELECT DISTINCT ON (a.outbox_id, a.endpoint_id) a.outbox_id, a.endpoint_id, a.at, a.code, a.error,
           max(a.attempt) OVER w AS attempts, bool_or(a.ok) OVER w AS ok
    FROM event e CROSS JOIN LATERAL (SELECT * FROM webhookd.attempt t WHERE t.outbox_id = e.id AND (t.ok OR t.trigger IS DISTINCT FROM 'resend')) a
    WINDOW w AS (PARTITION BY a.outbox_id, a.endpoint_id)
    ORDER BY a.outbox_id, a.endpoint_id, a.at DESC),
  owed AS MATERIALIZED (
    SELECT b.* FROM event e CROSS JOIN LATERAL (SELECT * FROM webhookd.backlog t WHERE t.outbox_id = e.id) b),
  held AS MATERIALIZED (
    SELECT e.id AS event, b.id, b.done_at FROM event e CROSS JOIN LATERAL (  -- the index on hi leads to the first batch that can hold it, which is nearly always the one
    SELECT c.id, c.done_at FROM webhookd.batch c
    WHERE c.hi >= e.created_at AND c.lo <= e.created_at AND e.id = ANY (c.outbox_ids)
      AND NOT EXISTS (SELECT FROM webhookd.scheduled s WHERE s.due = e.deliver_after AND s.outbox_id = e.id)
    ORDER BY c.hi LIMIT 1) b),
  aside AS MATERIALIZED (
    SELECT a.* FROM webhookd.aside((SELECT array_agg(e.id) FROM event e), (SELECT min(e.created_at) FROM event e), (SELECT max(e.created_at) FROM event e)) a),
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
  SELECT a.outbox_id, CASE WHEN p.tenant = '' THEN p.name ELSE p.tenant || '/' || p.name END, a.state, 0, NULL, a.reason, NULL, NULL
  FROM aside a JOIN webhookd.endpoint p ON p.id = a.endpoint_id
  UNION ALL
  SELECT e.id, NULL,
         CASE WHEN u.outbox_id IS NOT NULL THEN 'unreadable' WHEN b.id IS NULL THEN 'waiting' WHEN b.done_at IS NULL THEN 'sending' WHEN m.reason IS NULL THEN 'unmatched' ELSE 'missed' END,
         0, NULL, COALESCE(u.why, m.reason), CASE WHEN b.id IS NULL THEN e.deliver_after END, NULL
  FROM event e
  LEFT JOIN held b ON b.event = e.id
  LEFT JOIN webhookd.unreadable u ON u.outbox_id = e.id
  LEFT JOIN LATERAL (SELECT r.reason FROM webhookd.missed r WHERE b.id >= r.from_batch AND b.id < r.to_batch AND r.reason IN ('discarded', 'retention') LIMIT 1) m ON true
  WHERE u.outbox_id IS NOT NULL
     OR NOT EXISTS (SELECT FROM known k WHERE k.outbox_id = e.id) AND NOT EXISTS (SELECT FROM aside a WHERE a.outbox_id = e.id)
  ORDER BY 1, 2
$$;

-- As before, and the shots.
CREATE OR REPLACE FUNCTION webhookd.erase(tenant text DEFAULT NULL, event_id text DEFAULT NULL, after bigint DEFAULT 0, dry_run boolean DEFAULT false,
                                          OUT next bigint, OUT events bigint, OUT deliveries bigint, OUT responses bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  ids bigint[];
  low timestamptz;
BEGIN
  IF (tenant IS NULL) = (event_id IS NULL) THEN RAISE EXCEPTION 'give either a tenant or an event_id'; END IF;
  IF event_id IS NULL THEN
    SELECT max(w.id), array_agg(w.id) FILTER (WHERE w.tenant = erase.tenant), min(w.created_at) INTO next, ids, low
      FROM (SELECT o.id, o.tenant, o.created_at FROM webhookd.outbox o WHERE o.id > after ORDER BY o.id LIMIT 10000) w;
  ELSE
    SELECT array_agg(o.id), min(o.created_at) INTO ids, low FROM webhookd.outbox o WHERE o.event_id = erase.event_id;
  END IF;
  events := COALESCE(cardinality(ids), 0);
  SELECT count(*) INTO deliveries FROM webhookd.backlog b WHERE b.outbox_id = ANY (ids);
  SELECT count(*) INTO responses FROM webhookd.attempt a
   WHERE a.outbox_id = ANY (ids) AND a.at >= low - interval '1 min' AND a.response IS NOT NULL;
  IF dry_run THEN RETURN; END IF;
  IF event_id IS NULL AND tenant <> '' AND after = 0 THEN DELETE FROM webhookd.audit d WHERE d.tenant = erase.tenant; END IF;
  IF event_id IS NULL AND after = 0 THEN
    DELETE FROM webhookd.shot s USING webhookd.endpoint e WHERE e.id = s.endpoint_id AND e.tenant = erase.tenant AND s.kind = 'test';
  END IF;
  IF after = 0 AND (tenant IS NOT NULL OR events > 0) THEN
    INSERT INTO webhookd.audit (action, subject, tenant) VALUES ('erase', COALESCE(event_id, tenant), tenant);
  END IF;
  IF events = 0 THEN RETURN; END IF;
  UPDATE webhookd.attempt a SET response = NULL
   WHERE a.outbox_id = ANY (ids) AND a.at >= low - interval '1 min' AND a.response IS NOT NULL;
  DELETE FROM webhookd.shot s WHERE s.outbox_id = ANY (ids);
  DELETE FROM webhookd.backlog b WHERE b.outbox_id = ANY (ids);
  DELETE FROM webhookd.unreadable u WHERE u.outbox_id = ANY (ids);
  DELETE FROM webhookd.scheduled z WHERE z.outbox_id = ANY (ids);
  DELETE FROM webhookd.outbox o WHERE o.id = ANY (ids) AND o.created_at >= low;
END $$;

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
  DELETE FROM webhookd.shot s WHERE s.id IN (SELECT t.id FROM webhookd.shot t WHERE t.created_at < now() - events ORDER BY t.id LIMIT 10000);
  DELETE FROM webhookd.audit d WHERE d.id IN (SELECT a.id FROM webhookd.audit a WHERE a.at < now() - interval '90 days' ORDER BY a.id LIMIT 10000);
  RETURN swept;
END $$;
