-- What endpoints are owed, and what they missed, that has no row: it stands in the log, before a cursor or in a range of `missed`, and who subscribes to it
-- only reading it tells. These read some of it, with the owner's rights, since filters look at metadata, which whoever asks need not be allowed to read.

-- Of these events, created between two moments, each endpoint that has it `parked`, since its cursor has not come to it, or has `missed` it, and why. By
-- what endpoints subscribe to now. Not where there is an attempt or a row in the backlog, which know better.
CREATE FUNCTION webhookd.aside(ids bigint[], low timestamptz, high timestamptz, of_endpoint int DEFAULT NULL)
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
     AND NOT EXISTS (SELECT FROM webhookd.attempt a WHERE a.outbox_id = o.event AND a.endpoint_id = o.endpoint AND a.at >= low - interval '1 min')
   ORDER BY o.event, o.endpoint, r.state DESC
$$;

-- How many events that is, of each endpoint or of one. No more than `most` events of the log are looked at, each endpoint has its part of them: where there
-- are more, the number is that of those that were, and `parked_more` or `missed_more` is true.
CREATE FUNCTION webhookd.count_aside(most int, of_endpoint int DEFAULT NULL)
RETURNS TABLE (endpoint_id int, parked bigint, parked_more boolean, missed bigint, missed_more boolean)
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
  part AS MATERIALIZED (SELECT LEAST(1000, GREATEST(10, most / GREATEST(count(*), 1)))::int AS size FROM ranges),
  looked AS (
    SELECT r.endpoint_id, r.state, count(*) FILTER (WHERE e.owed) AS events,
           count(u.id) > p.size OR EXISTS (SELECT FROM webhookd.batch c WHERE c.id >= r.first + p.size AND (c.id < r.until OR r.until IS NULL)) AS more
      FROM ranges r JOIN webhookd.endpoint s ON s.id = r.endpoint_id CROSS JOIN part p
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
           AND NOT EXISTS (SELECT FROM webhookd.backlog w WHERE w.endpoint_id = s.id AND w.outbox_id = o.id) OFFSET 0) e ON true
     GROUP BY r.endpoint_id, r.state, r.first, r.until, p.size)
  SELECT l.endpoint_id, COALESCE(sum(l.events) FILTER (WHERE l.state = 'parked'), 0)::bigint, COALESCE(bool_or(l.more) FILTER (WHERE l.state = 'parked'), false),
         COALESCE(sum(l.events) FILTER (WHERE l.state = 'missed'), 0)::bigint, COALESCE(bool_or(l.more) FILTER (WHERE l.state = 'missed'), false)
    FROM looked l GROUP BY l.endpoint_id
$$;

REVOKE EXECUTE ON FUNCTION webhookd.aside(bigint[], timestamptz, timestamptz, int), webhookd.count_aside(int, int) FROM PUBLIC;

-- What became of an event: a row per endpoint that has an attempt or a backlog row, or that has it aside (`parked` or `missed`, with the reason); or else one
-- row without an endpoint. waiting, sending and unmatched are nowhere written down: they follow from the batch, because a healthy delivery has no row.
-- `unreadable` has the reason, and so has `missed`: that of an event which was dropped from the log, and which nobody subscribes to now.
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
    FROM event e CROSS JOIN LATERAL (SELECT * FROM webhookd.attempt t WHERE t.outbox_id = e.id) a
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
