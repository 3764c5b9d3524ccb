-- breaking: a daemon that does not know of discards would send what was discarded.

-- Deliveries that nobody wants any longer: of events of a type (a pattern, as endpoints have), of a tenant, for an endpoint, inserted in a span that never
-- reaches into the future; what is null is any. Whoever has such a delivery in hand, or comes to it in the log, lets it go: it costs no row. Those in the
-- backlog end there. Replays up to the number `replays` were of before it; a later one is meant to send them all the same.
CREATE TABLE webhookd.discard (
  id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  type text, tenant text, endpoint_id int,
  since       timestamptz NOT NULL,
  until       timestamptz NOT NULL,
  replays     bigint      NOT NULL,
  endpoints   int         NOT NULL DEFAULT 2147483647,  -- the newest that there was: those that came later were owed nothing that could be discarded
  by          text        NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  next_endpoint int NOT NULL DEFAULT 0, next_event bigint NOT NULL DEFAULT 0,  -- behind these, the backlog is yet to be looked through
  passes      int         NOT NULL DEFAULT 0,         -- how often it has been: once more when every daemon knows
  ended       bigint      NOT NULL DEFAULT 0,         -- rows that ended
  done_at     timestamptz
);

-- Whether a delivery is discarded; where it is of a replay, that has a number. `known`: only where its endpoint was there at that time.
CREATE FUNCTION webhookd.is_discarded(kind text, whose text, created timestamptz, p int, replay bigint DEFAULT NULL, known boolean DEFAULT false) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  SELECT EXISTS (
    SELECT FROM webhookd.discard d
     WHERE created >= d.since AND created <= d.until AND (d.tenant IS NULL OR d.tenant = whose) AND (d.endpoint_id IS NULL OR d.endpoint_id = p)
       AND (replay IS NULL OR replay <= d.replays) AND (NOT known OR p <= d.endpoints)
       AND (d.type IS NULL OR d.type = kind OR d.type = '*' AND NOT starts_with(kind, 'webhookd.') OR d.type LIKE '%.*' AND starts_with(kind, left(d.type, -1))))
$$;

-- End what a discard has in the next `most` rows of the backlog: how many it ended, and whether there may be more at once. Nothing where another does it.
CREATE FUNCTION webhookd.discard_step(p_discard bigint, most int, OUT many int, OUT more boolean)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  it webhookd.discard;
  last_endpoint int;
  last_event bigint;
  seen int;
BEGIN
  many := 0;
  more := false;
  SELECT d.* INTO it FROM webhookd.discard d WHERE d.id = p_discard AND d.done_at IS NULL FOR UPDATE SKIP LOCKED;
  IF it.id IS NULL OR it.passes > 0 AND now() < it.created_at + interval '5 s' THEN RETURN; END IF;
  WITH page AS MATERIALIZED (
    SELECT b.endpoint_id, b.outbox_id, b.outbox_at, b.state, b.replay FROM webhookd.backlog b
     WHERE (b.endpoint_id, b.outbox_id) > (it.next_endpoint, it.next_event) AND (it.endpoint_id IS NULL OR b.endpoint_id = it.endpoint_id)
     ORDER BY b.endpoint_id, b.outbox_id LIMIT most),
  ended AS (
    UPDATE webhookd.backlog w SET state = 'rejected', last_error = 'discarded', last_code = NULL
      FROM (SELECT g.* FROM page g CROSS JOIN LATERAL (
              SELECT FROM webhookd.outbox o
               WHERE o.id = g.outbox_id AND o.created_at = g.outbox_at AND o.created_at >= it.since AND o.created_at <= it.until
                 AND (it.tenant IS NULL OR o.tenant = it.tenant)
                 AND (it.type IS NULL OR o.type = it.type OR it.type = '*' AND NOT starts_with(o.type, 'webhookd.')
                      OR it.type LIKE '%.*' AND starts_with(o.type, left(it.type, -1))) OFFSET 0) o
             WHERE g.state IN ('retry', 'held') AND (g.replay IS NULL OR g.replay <= it.replays) ORDER BY g.endpoint_id, g.outbox_id) e
     WHERE w.endpoint_id = e.endpoint_id AND w.outbox_id = e.outbox_id AND w.state IN ('retry', 'held') RETURNING 1)
  SELECT count(*), (SELECT count(*) FROM ended), (array_agg(g.endpoint_id ORDER BY g.endpoint_id DESC, g.outbox_id DESC))[1],
         (array_agg(g.outbox_id ORDER BY g.endpoint_id DESC, g.outbox_id DESC))[1]
    INTO seen, many, last_endpoint, last_event FROM page g;
  more := seen = most;
  UPDATE webhookd.discard d
     SET ended = d.ended + many,
         next_endpoint = CASE WHEN more THEN last_endpoint ELSE 0 END, next_event = CASE WHEN more THEN last_event ELSE 0 END,
         passes = d.passes + CASE WHEN more THEN 0 ELSE 1 END,
         done_at = CASE WHEN NOT more AND d.passes > 0 THEN now() END
   WHERE d.id = it.id;
END $$;
REVOKE EXECUTE ON FUNCTION webhookd.is_discarded(text, text, timestamptz, int, bigint, boolean), webhookd.discard_step(bigint, int) FROM PUBLIC;

-- As before, and what was discarded without a row.
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
      FROM webhookd.endpoint p CROSS JOIN LATERAL jsonb_array_elements_text(p.spec -> 'events') x(pattern) 
     WHERE p.id IN (SELECT r.endpoint_id FROM ranges r)
        OR EXISTS (SELECT FROM webhookd.discard) AND p.removed_at IS NULL AND p.spec ->> 'active' IS DISTINCT FROM 'false' AND (of_endpoint IS NULL OR p.id = of_endpoint)),
  event AS MATERIALIZED (
    SELECT o.id, o.created_at, o.deliver_after, o.type, o.tenant, o.metadata, o.own FROM webhookd.outbox o
     WHERE EXISTS (SELECT FROM ranges UNION ALL SELECT FROM webhookd.discard) AND o.id = ANY (ids) AND o.created_at >= low AND o.created_at <= high
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
     WHERE e.id IN (SELECT o.event FROM owing o)),
  ledger AS MATERIALIZED (  -- whether it was delivered before that, nobody knows any longer
    SELECT COALESCE(min(x.since), '-infinity') AS since FROM webhookd.partitions('attempt') x WHERE EXISTS (SELECT FROM webhookd.discard)),
  found AS (
    SELECT o.event, o.endpoint, r.state, r.reason
      FROM owing o JOIN held h ON h.event = o.event
      JOIN ranges r ON r.endpoint_id = o.endpoint AND (h.id > r.first OR h.id = r.first AND h.place > r.pos) AND (h.id < r.until OR r.until IS NULL)
    UNION ALL
    SELECT o.event, o.endpoint, 'rejected', 'discarded' FROM owing o JOIN event e ON e.id = o.event
     WHERE EXISTS (SELECT FROM webhookd.discard) AND webhookd.is_discarded(e.type, e.tenant, e.created_at, o.endpoint, known => true)
       AND e.created_at >= (SELECT x.since FROM ledger x))
  SELECT DISTINCT ON (f.event, f.endpoint) f.event, f.endpoint, f.state, f.reason
    FROM found f
   WHERE NOT EXISTS (SELECT FROM webhookd.backlog w WHERE w.endpoint_id = f.endpoint AND w.outbox_id = f.event)
     AND NOT EXISTS (SELECT FROM webhookd.attempt a WHERE a.outbox_id = f.event AND a.endpoint_id = f.endpoint AND (a.ok OR a.trigger IS DISTINCT FROM 'resend') AND a.at >= low - interval '1 min')
   ORDER BY f.event, f.endpoint, f.state = 'rejected' DESC, f.state DESC
$$;

-- As before, but for what is discarded, or was missed and sent in the end.
CREATE OR REPLACE FUNCTION webhookd.count_aside(most int, of_endpoint int DEFAULT NULL)
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
           AND (NOT EXISTS (SELECT FROM webhookd.discard) OR NOT webhookd.is_discarded(o.type, o.tenant, o.created_at, s.id))
           AND NOT EXISTS (SELECT FROM webhookd.backlog w WHERE w.endpoint_id = s.id AND w.outbox_id = o.id)
           AND (r.state <> 'missed' OR NOT EXISTS (SELECT FROM webhookd.attempt a WHERE a.outbox_id = o.id AND a.endpoint_id = s.id AND a.ok AND a.at >= o.created_at - interval '1 min')) OFFSET 0) e ON true
     GROUP BY r.endpoint_id, r.state, r.first, r.until, p.size)
  SELECT l.endpoint_id, COALESCE(sum(l.events) FILTER (WHERE l.state = 'parked'), 0)::bigint, COALESCE(bool_or(l.more) FILTER (WHERE l.state = 'parked'), false),
         COALESCE(sum(l.events) FILTER (WHERE l.state = 'missed'), 0)::bigint, COALESCE(bool_or(l.more) FILTER (WHERE l.state = 'missed'), false)
    FROM looked l GROUP BY l.endpoint_id
$$;

CREATE OR REPLACE FUNCTION webhookd.replay_piece(p int, query jsonb, to_batch bigint, looked int, most int, mark bigint,
                                      INOUT next_batch bigint, INOUT next_pos int, OUT many int, OUT gone int)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET jit = off
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  wanted text := query ->> 'state';
  pattern text := query ->> 'type';
  since timestamptz := COALESCE((query ->> 'since')::timestamptz, '-infinity');
  until timestamptz := COALESCE((query ->> 'until')::timestamptz, 'infinity');
  ledger timestamptz := COALESCE((SELECT min(x.since) FROM webhookd.partitions('attempt') x), '-infinity');
  pages bigint[];
  last_batch bigint;
  last_pos int;
  seen int;
  chosen int;
BEGIN
  many := 0;
  gone := 0;
  -- Nobody knows yet what becomes of what is in hand.
  SELECT array_agg(c.id ORDER BY c.id) INTO pages
    FROM (SELECT b.id, bool_and(b.done_at IS NOT NULL) OVER (ORDER BY b.id) AS is_done FROM (
            SELECT b.id, b.done_at FROM webhookd.batch b WHERE b.id >= next_batch AND b.id < to_batch ORDER BY b.id LIMIT 20) b) c
   WHERE c.is_done;
  IF pages IS NULL THEN
    IF NOT EXISTS (SELECT FROM webhookd.batch b WHERE b.id >= next_batch AND b.id < to_batch) THEN
      next_batch := to_batch;
      next_pos := 0;
    END IF;
    RETURN;
  END IF;
  WITH page AS MATERIALIZED (
    SELECT b.id AS batch, b.lo, b.hi, x.event, x.place::int AS place FROM webhookd.batch b CROSS JOIN LATERAL unnest(b.outbox_ids) WITH ORDINALITY x(event, place)
     WHERE b.id = ANY (pages) AND (b.id > next_batch OR x.place > next_pos) ORDER BY b.id, x.place LIMIT looked),
  judged AS MATERIALIZED (
    SELECT g.batch, g.place, g.event, o.id IS NULL AS is_gone, o.created_at, o.ordering_key, COALESCE(o.chosen, false) AS chosen
      FROM page g LEFT JOIN LATERAL (
        SELECT e.id, e.created_at, e.ordering_key,
               e.created_at >= since AND e.created_at <= until AND (pattern IS NULL OR pattern = e.type OR pattern = '*' AND NOT starts_with(e.type, 'webhookd.')
                    OR pattern LIKE '%.*' AND starts_with(e.type, left(pattern, -1)))
               AND NOT EXISTS (SELECT FROM webhookd.unreadable u WHERE u.outbox_id = e.id)
               AND NOT (mark IS NOT NULL AND EXISTS (SELECT FROM webhookd.discard) AND webhookd.is_discarded(e.type, e.tenant, e.created_at, p, mark))
               AND NOT EXISTS (SELECT FROM webhookd.parked k WHERE k.endpoint_id = p AND k.reason <> 'disabled' AND (k.to_batch IS NULL OR g.batch < k.to_batch)
                                  AND (g.batch > k.next_batch OR g.batch = k.next_batch AND g.place > k.next_pos)
                                  AND NOT (EXISTS (SELECT FROM webhookd.discard) AND webhookd.is_discarded(e.type, e.tenant, e.created_at, p)))
               AND CASE WHEN w.state IS NOT NULL
                        THEN w.state IN ('exhausted', 'rejected') AND wanted IN ('all', CASE WHEN w.state = 'rejected' AND w.last_error = 'discarded' THEN 'discarded' ELSE w.state END)
                        WHEN wanted IN ('exhausted', 'discarded') AND NOT EXISTS (
                               SELECT FROM webhookd.missed m WHERE m.endpoint_id = p AND m.reason = wanted AND g.batch >= m.from_batch AND g.batch < m.to_batch)
                         AND NOT (wanted = 'discarded' AND EXISTS (SELECT FROM webhookd.discard) AND e.created_at >= ledger
                                  AND webhookd.is_discarded(e.type, e.tenant, e.created_at, p, known => true)) THEN false
                        WHEN wanted = 'missed' AND EXISTS (SELECT FROM webhookd.discard) AND webhookd.is_discarded(e.type, e.tenant, e.created_at, p, known => true) THEN false
                        WHEN wanted = 'rejected' THEN false
                        WHEN wanted = 'missed' AND EXISTS (SELECT FROM webhookd.missed m WHERE m.endpoint_id = p AND m.reason IN ('exhausted', 'discarded')
                                                              AND g.batch >= m.from_batch AND g.batch < m.to_batch) THEN false
                        WHEN wanted <> 'all' AND EXISTS (SELECT FROM webhookd.attempt a WHERE a.outbox_id = e.id AND a.endpoint_id = p AND a.ok
                                                            AND a.at >= e.created_at - interval '1 min') THEN false
                        ELSE s.tenant IN (e.tenant, '*')
                         AND EXISTS (SELECT FROM jsonb_array_elements_text(s.spec -> 'events') x(pattern)
                                      WHERE x.pattern = e.type OR x.pattern = '*' AND NOT starts_with(e.type, 'webhookd.')
                                         OR x.pattern LIKE '%.*' AND starts_with(e.type, left(x.pattern, -1)))
                         AND (COALESCE(s.spec -> 'filter', '{}') = '{}' OR webhookd.passes(s.spec -> 'filter', e.metadata))
                         AND CASE WHEN e.own THEN concat_ws('/', NULLIF(s.tenant, ''), s.name) IS DISTINCT FROM e.metadata ->> 'endpoint' ELSE true END
                   END AS chosen
          FROM webhookd.outbox e CROSS JOIN webhookd.endpoint s
          LEFT JOIN LATERAL (SELECT b.state, b.last_error FROM webhookd.backlog b WHERE b.endpoint_id = p AND b.outbox_id = e.id) w ON true
         WHERE e.id = g.event AND e.created_at >= g.lo AND e.created_at <= g.hi AND s.id = p OFFSET 0) o ON true),
  taken AS MATERIALIZED (
    SELECT j.*, count(*) FILTER (WHERE j.chosen) OVER (ORDER BY j.batch, j.place) AS n FROM judged j),
  owed AS (
    INSERT INTO webhookd.backlog AS b (endpoint_id, outbox_id, outbox_at, due, ordering_key, replay)
    SELECT p, t.event, t.created_at, now(), t.ordering_key, mark FROM taken t WHERE mark IS NOT NULL AND t.chosen AND t.n <= most ORDER BY t.event
    ON CONFLICT (endpoint_id, outbox_id) DO UPDATE
       SET attempts = 0, asked = 0, due = now(), state = 'retry', clock_from = now(), owner = NULL, deaths = 0, replay = EXCLUDED.replay, last_error = NULL, last_code = NULL
     WHERE b.state IN ('exhausted', 'rejected') RETURNING 1)
  SELECT count(*), count(*) FILTER (WHERE t.chosen), count(*) FILTER (WHERE t.chosen AND t.n <= most), count(*) FILTER (WHERE t.is_gone AND t.n <= most),
         max(t.batch) FILTER (WHERE t.n <= most), (array_agg(t.place ORDER BY t.batch DESC, t.place DESC) FILTER (WHERE t.n <= most))[1]
    INTO seen, chosen, many, gone, last_batch, last_pos FROM taken t;
  IF chosen > most OR seen = looked THEN  -- there is more in these batches
    next_batch := COALESCE(last_batch, next_batch);
    next_pos := COALESCE(last_pos, next_pos);
  ELSE
    next_batch := pages[cardinality(pages)] + 1;
    next_pos := 0;
  END IF;
END $$;

CREATE OR REPLACE FUNCTION webhookd.sweep(events interval DEFAULT '7 days') RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  oldest timestamptz := LEAST(now() - events, (SELECT o.created_at FROM webhookd.outbox o WHERE isfinite(o.created_at) ORDER BY o.id LIMIT 1));
  first bigint := COALESCE((SELECT o.id FROM webhookd.outbox o ORDER BY o.id LIMIT 1), 9e18);
  kept bigint := LEAST((SELECT b.id FROM webhookd.batch b WHERE b.hi >= oldest - interval '1 day' ORDER BY b.hi LIMIT 1), (SELECT max(b.id) FROM webhookd.batch b), (SELECT max(d.low) + 1 FROM webhookd.daemon d),
                       (SELECT min(p.next_batch) FROM webhookd.parked p));
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
  DELETE FROM webhookd.replay r WHERE r.state <> 'running' AND r.ended_at < now() - interval '90 days';
  DELETE FROM webhookd.discard d WHERE d.done_at IS NOT NULL AND d.until < oldest - interval '1 day';
  DELETE FROM webhookd.shot s WHERE s.id IN (SELECT t.id FROM webhookd.shot t WHERE t.created_at < now() - events ORDER BY t.id LIMIT 10000);
  DELETE FROM webhookd.audit d WHERE d.id IN (SELECT a.id FROM webhookd.audit a WHERE a.at < now() - interval '90 days' ORDER BY a.id LIMIT 10000);
  RETURN swept;
END $$;
