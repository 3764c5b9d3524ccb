-- Replays of what failed, was exhausted or rejected; of what was delivered; of types, channels, tags, and answers of a class.
CREATE OR REPLACE FUNCTION webhookd.replay_piece(p int, query jsonb, to_batch bigint, looked int, most int, mark bigint,
                                      INOUT next_batch bigint, INOUT next_pos int, OUT many int, OUT gone int)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET jit = off SET plan_cache_mode = force_generic_plan
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  wanted text := query ->> 'state';
  ended text := CASE query ->> 'state' WHEN 'failed' THEN 'exhausted' ELSE query ->> 'state' END;  -- what failed is what was exhausted or rejected
  pattern text := query ->> 'type';
  types text[] := CASE WHEN query ? 'types' THEN ARRAY(SELECT jsonb_array_elements_text(query -> 'types')) END;
  labels jsonb := COALESCE(query -> 'labels', '{}');
  class int := (query ->> 'code_class')::int;  -- of the last answer; 0 for none
  since timestamptz := COALESCE((query ->> 'since')::timestamptz, '-infinity');
  until timestamptz := COALESCE((query ->> 'until')::timestamptz, 'infinity');
  ledger timestamptz := '-infinity';
  pages bigint[];
  oldest timestamptz;
  newest timestamptz;
  last_batch bigint;
  last_pos int;
  seen int;
  chosen int;
BEGIN
  many := 0;
  gone := 0;
  -- Nobody knows yet what becomes of what is in hand.
  SELECT array_agg(c.id ORDER BY c.id), min(c.lo), max(c.hi) INTO pages, oldest, newest
    FROM (SELECT b.id, b.lo, b.hi, bool_and(b.done_at IS NOT NULL) OVER (ORDER BY b.id) AS is_done FROM (
            SELECT b.id, b.lo, b.hi, b.done_at FROM webhookd.batch b WHERE b.id >= next_batch AND b.id < to_batch ORDER BY b.id LIMIT 20) b) c
   WHERE c.is_done;
  IF pages IS NULL THEN
    IF NOT EXISTS (SELECT FROM webhookd.batch b WHERE b.id >= next_batch AND b.id < to_batch) THEN
      next_batch := to_batch;
      next_pos := 0;
    END IF;
    RETURN;
  END IF;
  IF wanted = 'discarded' THEN
    ledger := COALESCE((SELECT min(x.since) FROM webhookd.partitions('attempt') x), '-infinity');
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
               AND (types IS NULL OR e.type = ANY (types)) AND (labels = '{}' OR webhookd.passes(labels, e.metadata))
               AND (class IS NULL OR COALESCE((SELECT CASE WHEN class = 0 THEN a.code IS NULL ELSE a.code >= class AND a.code < class + 100 END
                                                 FROM webhookd.attempt a WHERE a.outbox_id = e.id AND a.endpoint_id = p AND a.at >= e.created_at - interval '1 min'
                                                  AND a.at >= oldest - interval '1 min' AND a.at <= now() + interval '1 day' ORDER BY a.at DESC LIMIT 1), false))
               AND NOT EXISTS (SELECT FROM webhookd.unreadable u WHERE u.outbox_id = e.id)
               AND NOT (mark IS NOT NULL AND EXISTS (SELECT FROM webhookd.discard) AND webhookd.is_discarded(e.type, e.tenant, e.created_at, p, mark))
               AND NOT EXISTS (SELECT FROM webhookd.parked k WHERE k.endpoint_id = p AND k.reason <> 'disabled' AND (k.to_batch IS NULL OR g.batch < k.to_batch)
                                  AND (g.batch > k.next_batch OR g.batch = k.next_batch AND g.place > k.next_pos)
                                  AND NOT (EXISTS (SELECT FROM webhookd.discard) AND webhookd.is_discarded(e.type, e.tenant, e.created_at, p)))
               AND CASE WHEN w.state IS NOT NULL
                        THEN w.state IN ('exhausted', 'rejected') AND CASE WHEN w.state = 'rejected' AND w.last_error = 'discarded' THEN wanted IN ('all', 'discarded')
                                                                       ELSE wanted IN ('all', 'failed', w.state) END
                        WHEN wanted IN ('exhausted', 'failed', 'discarded') AND NOT EXISTS (
                               SELECT FROM webhookd.missed m WHERE m.endpoint_id = p AND m.reason = ended AND g.batch >= m.from_batch AND g.batch < m.to_batch)
                         AND NOT (wanted = 'discarded' AND EXISTS (SELECT FROM webhookd.discard) AND e.created_at >= ledger
                                  AND webhookd.is_discarded(e.type, e.tenant, e.created_at, p, known => true)) THEN false
                        WHEN wanted = 'missed' AND EXISTS (SELECT FROM webhookd.discard) AND webhookd.is_discarded(e.type, e.tenant, e.created_at, p, known => true) THEN false
                        WHEN wanted = 'rejected' THEN false
                        WHEN wanted = 'delivered' THEN EXISTS (SELECT FROM webhookd.attempt a WHERE a.outbox_id = e.id AND a.endpoint_id = p AND a.ok
                                                                 AND a.at >= e.created_at - interval '1 min'
                                                                 AND a.at >= oldest - interval '1 min' AND a.at <= now() + interval '1 day')
                        WHEN wanted = 'missed' AND EXISTS (SELECT FROM webhookd.missed m WHERE m.endpoint_id = p AND m.reason IN ('exhausted', 'discarded')
                                                              AND g.batch >= m.from_batch AND g.batch < m.to_batch) THEN false
                        WHEN wanted <> 'all' AND EXISTS (SELECT FROM webhookd.attempt a WHERE a.outbox_id = e.id AND a.endpoint_id = p AND a.ok
                                                            AND a.at >= e.created_at - interval '1 min'
                                                            AND a.at >= oldest - interval '1 min' AND a.at <= now() + interval '1 day') THEN false
                        ELSE s.tenant IN (e.tenant, '*')
                         AND EXISTS (SELECT FROM jsonb_array_elements_text(s.spec -> 'events') x(pattern)
                                      WHERE x.pattern = e.type OR x.pattern = '*' AND NOT starts_with(e.type, 'webhookd.')
                                         OR x.pattern LIKE '%.*' AND starts_with(e.type, left(x.pattern, -1)))
                         AND (COALESCE(s.spec -> 'filter', '{}') = '{}' OR webhookd.passes(s.spec -> 'filter', e.metadata))
                         AND CASE WHEN e.own THEN concat_ws('/', NULLIF(s.tenant, ''), s.name) IS DISTINCT FROM e.metadata ->> 'endpoint' ELSE true END
                   END AS chosen
          FROM webhookd.outbox e CROSS JOIN webhookd.endpoint s
          LEFT JOIN LATERAL (SELECT b.state, b.last_error FROM webhookd.backlog b WHERE b.endpoint_id = p AND b.outbox_id = e.id) w ON true
         WHERE e.id = g.event AND e.created_at >= g.lo AND e.created_at <= g.hi
           AND e.created_at >= oldest AND e.created_at <= newest AND s.id = p OFFSET 0) o ON true),
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
