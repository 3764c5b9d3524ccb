-- Replays: a part of the log for an endpoint once more, of what ended badly, was missed, or all. Some at a time its deliveries become rows of the backlog, and
-- from there on they are as any that is to be tried again. So a replay has neither an owner nor a window: a daemon takes the next piece of it, in one
-- transaction with the place it comes to. It keeps no partition: what retention has taken it passes over.
ALTER TABLE webhookd.replay DROP COLUMN owner, DROP COLUMN epoch,
  ADD COLUMN from_batch bigint NOT NULL DEFAULT 0, ADD COLUMN to_batch bigint NOT NULL DEFAULT 0,  -- it is of [from_batch, to_batch)
  ADD COLUMN next_pos   int    NOT NULL DEFAULT 0,                                                 -- and goes on in next_batch, behind so many events
  ADD COLUMN gone       bigint NOT NULL DEFAULT 0,                                                 -- events that retention has taken
  ADD COLUMN by         text   NOT NULL DEFAULT '',
  ADD COLUMN paced_at   timestamptz NOT NULL DEFAULT now(),                                        -- what it may hand out has been counted up to then
  ADD COLUMN ended_at   timestamptz;
CREATE UNIQUE INDEX replay_running ON webhookd.replay (endpoint_id) WHERE state = 'running';

ALTER TABLE webhookd.backlog ADD COLUMN replay bigint;  -- the replay that it is of, if it is of one

-- A piece of a replay: what `looked` events of the log have for the endpoint p, `most` deliveries at most, from a place on and up to where the piece ends.
-- query: state (exhausted, rejected, discarded, missed or all), type (a pattern as endpoints have, or null), since and until (moments at which events were
-- inserted, or null). With `mark`, the number of a replay, they are owed from now on, and one that ended badly begins anew; without, they are only counted.
--
-- What waits to be tried again, or before a cursor, is left alone. Missed is what the endpoint subscribes to now and was neither sent nor owed, whyever:
-- so also what came before the endpoint, or while its files did not say that it wants it.
CREATE FUNCTION webhookd.replay_piece(p int, query jsonb, to_batch bigint, looked int, most int, mark bigint,
                                      INOUT next_batch bigint, INOUT next_pos int, OUT many int, OUT gone int)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET jit = off
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  wanted text := query ->> 'state';
  pattern text := query ->> 'type';
  since timestamptz := COALESCE((query ->> 'since')::timestamptz, '-infinity');
  until timestamptz := COALESCE((query ->> 'until')::timestamptz, 'infinity');
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
               AND NOT EXISTS (SELECT FROM webhookd.parked k WHERE k.endpoint_id = p AND k.reason <> 'disabled' AND (k.to_batch IS NULL OR g.batch < k.to_batch)
                                  AND (g.batch > k.next_batch OR g.batch = k.next_batch AND g.place > k.next_pos))
               AND CASE WHEN w.state IS NOT NULL
                        THEN w.state IN ('exhausted', 'rejected') AND wanted IN ('all', CASE WHEN w.state = 'rejected' AND w.last_error = 'discarded' THEN 'discarded' ELSE w.state END)
                        WHEN wanted IN ('exhausted', 'discarded') AND NOT EXISTS (
                               SELECT FROM webhookd.missed m WHERE m.endpoint_id = p AND m.reason = wanted AND g.batch >= m.from_batch AND g.batch < m.to_batch) THEN false
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

-- The next piece of a replay, as much as its rate allows since the last one: how many deliveries are owed now, and whether there may be more at once. Nothing
-- where another has it in hand, while its endpoint is not to be sent to or fails, and while it is owed enough.
CREATE FUNCTION webhookd.replay_step(p_replay bigint, OUT many int, OUT more boolean)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  it webhookd.replay;
  piece record;
  allowed int;
  enough int;
BEGIN
  many := 0;
  more := false;
  SELECT r.* INTO it FROM webhookd.replay r WHERE r.id = p_replay AND r.state = 'running' FOR UPDATE SKIP LOCKED;
  IF it.id IS NULL THEN RETURN; END IF;
  IF EXISTS (SELECT FROM webhookd.endpoint e WHERE e.id = it.endpoint_id AND (e.paused_at IS NOT NULL OR e.disabled_at IS NOT NULL OR e.removed_at IS NOT NULL
                                                                             OR e.spec ->> 'active' = 'false'))
     OR EXISTS (SELECT FROM webhookd.parked k WHERE k.endpoint_id = it.endpoint_id AND k.to_batch IS NULL AND k.fails > 0) THEN
    RETURN;
  END IF;
  allowed := LEAST(floor(it.rate::float8 * extract(epoch FROM now() - it.paced_at)::float8 + 1e-6), GREATEST(1, it.rate), 500)::int;
  enough := LEAST(GREATEST(it.rate, 10), 400)::int;
  IF allowed < 1 OR (SELECT count(*) FROM (SELECT FROM webhookd.backlog b WHERE b.endpoint_id = it.endpoint_id AND b.state = 'retry' AND b.due <= now()
                                            ORDER BY b.due LIMIT enough) d) >= enough THEN
    RETURN;
  END IF;
  piece := webhookd.replay_piece(it.endpoint_id, it.query, it.to_batch, LEAST(GREATEST(4 * allowed, 50), 500), allowed, it.id, it.next_batch, it.next_pos);
  many := piece.many;
  more := (piece.next_batch, piece.next_pos) <> (it.next_batch, it.next_pos) AND piece.next_batch < it.to_batch;
  UPDATE webhookd.replay r
     SET next_batch = piece.next_batch, next_pos = piece.next_pos, sent = r.sent + piece.many, gone = r.gone + piece.gone,
         paced_at = GREATEST(r.paced_at + piece.many / r.rate * interval '1 s', now() - GREATEST(1, 1 / r.rate) * interval '1 s'),
         state = CASE WHEN piece.next_batch >= r.to_batch THEN 'done' ELSE r.state END,
         ended_at = CASE WHEN piece.next_batch >= r.to_batch THEN now() END
   WHERE r.id = it.id;
END $$;
REVOKE EXECUTE ON FUNCTION webhookd.replay_piece(int, jsonb, bigint, int, int, bigint, bigint, int), webhookd.replay_step(bigint) FROM PUBLIC;

-- As before, but that a replay keeps no event.
CREATE OR REPLACE FUNCTION webhookd.needed(part text, since timestamptz, until timestamptz) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  found boolean;
  newest bigint;
  low bigint := COALESCE((SELECT max(d.low) FROM webhookd.daemon d), 0);
BEGIN
  EXECUTE format('SELECT EXISTS (SELECT FROM webhookd.%I o WHERE o.xid >= $1 OR o.xid = ANY ($2))
                      OR EXISTS (SELECT FROM webhookd.remainder r JOIN webhookd.%I o ON o.xid = r.xid AND o.id > r.after_id), max(o.id) FROM webhookd.%I o', part, part, part)
     USING (SELECT pos_xmax FROM webhookd.batch ORDER BY id DESC LIMIT 1), (SELECT pos_xip FROM webhookd.batch ORDER BY id DESC LIMIT 1)
      INTO found, newest;
  RETURN CASE
    WHEN found THEN 'it has events that no daemon has read'
    WHEN EXISTS (SELECT FROM webhookd.surplus s WHERE s.lo < needed.until AND s.hi >= needed.since)
      THEN 'it has events that wait for those before them'
    WHEN EXISTS (SELECT FROM webhookd.batch b WHERE b.id > low AND b.done_at IS NULL AND b.lo < needed.until AND b.hi >= needed.since)
      THEN 'it has events that a daemon has in hand'
    WHEN EXISTS (SELECT FROM webhookd.scheduled z WHERE z.outbox_at >= needed.since AND z.outbox_at < needed.until)
      THEN 'it has events that are scheduled for later'
    WHEN EXISTS (SELECT FROM webhookd.backlog w WHERE w.outbox_id <= newest AND w.state IN ('retry', 'held')
                    AND w.outbox_at >= needed.since AND w.outbox_at < needed.until)
      THEN 'it has deliveries that are to be tried again'
    END;
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
  DELETE FROM webhookd.shot s WHERE s.id IN (SELECT t.id FROM webhookd.shot t WHERE t.created_at < now() - events ORDER BY t.id LIMIT 10000);
  DELETE FROM webhookd.audit d WHERE d.id IN (SELECT a.id FROM webhookd.audit a WHERE a.at < now() - interval '90 days' ORDER BY a.id LIMIT 10000);
  RETURN swept;
END $$;

-- As before; nobody wants here what was wanted elsewhere.
CREATE OR REPLACE FUNCTION webhookd.rebase(environment text, owed text, OUT events bigint, OUT batches bigint, OUT deliveries bigint, OUT later bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  numbered record;
  bounds text[];
  unbounds text[];
  dropped timestamptz := CASE owed WHEN 'drop' THEN now() END;
  newest bigint;
  here pg_snapshot;
  running xid8[];
BEGIN
  IF owed NOT IN ('deliver', 'drop') THEN RAISE EXCEPTION 'owed is deliver or drop'; END IF;
  PERFORM webhookd.lock_tables(), webhookd.lock_log(), webhookd.lock_endpoints();
  LOCK TABLE webhookd.outbox IN SHARE MODE;  -- all that has been inserted is committed now, and nothing more comes until we have
  here := pg_current_snapshot();
  running := ARRAY(SELECT pg_snapshot_xip(here));
  SELECT max(id) INTO newest FROM webhookd.batch;

  SELECT count(*) INTO batches FROM webhookd.batch WHERE done_at IS NULL;
  SELECT count(*) INTO deliveries FROM webhookd.backlog WHERE state IN ('retry', 'held');
  SELECT count(*) INTO later FROM webhookd.scheduled;
  IF dropped IS NOT NULL THEN
    INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason)
    SELECT p.id, b.id, b.id + 1, 'discarded' FROM webhookd.batch b CROSS JOIN webhookd.endpoint p WHERE b.done_at IS NULL
    ON CONFLICT DO NOTHING;
    UPDATE webhookd.backlog SET state = 'rejected', last_error = 'discarded' WHERE state IN ('retry', 'held');
    DELETE FROM webhookd.scheduled;  -- these are in no batch, so they end with those that nobody has read
  END IF;
  UPDATE webhookd.batch SET owner = NULL, done_at = dropped WHERE done_at IS NULL;
  UPDATE webhookd.daemon SET stopped_at = now() WHERE stopped_at IS NULL;

  -- Whether an event has been read, the batches know, whatever its transaction id says.
  DELETE FROM webhookd.remainder;
  DELETE FROM webhookd.surplus;
  WITH held AS MATERIALIZED (SELECT DISTINCT u.id FROM webhookd.batch b, unnest(b.outbox_ids) u(id)),
  unread AS MATERIALIZED (
    SELECT o.id, o.created_at, o.deliver_after, left(o.tenant, 255) AS tenant FROM webhookd.outbox o LEFT JOIN held h USING (id)
     WHERE h.id IS NULL AND NOT EXISTS (SELECT FROM webhookd.scheduled z WHERE z.outbox_id = o.id)),
  scheduled AS (
    INSERT INTO webhookd.scheduled SELECT u.deliver_after, u.id, u.created_at, u.tenant FROM unread u
     WHERE dropped IS NULL AND u.deliver_after > now() RETURNING outbox_id),
  page AS (
    SELECT (row_number() OVER (ORDER BY u.id) - 1) / 500 AS number, u.id, u.created_at FROM unread u
     WHERE dropped IS NOT NULL OR u.deliver_after IS NULL OR u.deliver_after <= now()),
  made AS (
    INSERT INTO webhookd.batch (id, pos_xmax, pos_xip, outbox_ids, lo, hi, done_at)
    SELECT newest + 2 + p.number, pg_snapshot_xmax(here), running, array_agg(p.id ORDER BY p.id), min(p.created_at), max(p.created_at), dropped
      FROM page p GROUP BY p.number
    UNION ALL
    SELECT newest + 1, pg_snapshot_xmax(here), running, '{}', now(), now(), now()  -- the position, also where nothing is unread
    RETURNING id)
  SELECT count(*) - CASE WHEN dropped IS NULL THEN 0 ELSE later END FROM unread INTO events;
  IF dropped IS NOT NULL THEN
    INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason)
    SELECT p.id, newest + 2, b.last + 1, 'discarded' FROM webhookd.endpoint p, (SELECT max(id) AS last FROM webhookd.batch) b WHERE b.last > newest + 1;
  END IF;

  -- What is parked: nobody has it, and what is dropped no cursor reads.
  SELECT max(b.id) + 1 INTO newest FROM webhookd.batch b;
  IF dropped IS NOT NULL THEN
    INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason)
    SELECT p.endpoint_id, p.next_batch, COALESCE(p.to_batch, newest), 'discarded' FROM webhookd.parked p WHERE p.next_batch < COALESCE(p.to_batch, newest)
    ON CONFLICT (endpoint_id, from_batch) DO UPDATE SET to_batch = EXCLUDED.to_batch;
    UPDATE webhookd.parked p SET next_batch = COALESCE(p.to_batch, newest), next_pos = 0 WHERE p.next_batch < COALESCE(p.to_batch, newest);
  END IF;
  UPDATE webhookd.parked SET owner = NULL;
  -- What somebody wanted elsewhere is not wanted here.
  UPDATE webhookd.shot SET done_at = now(), ok = false, error = 'not_taken' WHERE done_at IS NULL;
  UPDATE webhookd.replay SET state = 'cancelled', ended_at = now() WHERE state = 'running' AND dropped IS NOT NULL;
  UPDATE webhookd.config_version SET parked = parked + 1;

  -- Ids of the other cluster that would look as if they were to come here.
  BEGIN
    UPDATE webhookd.outbox SET xid = '0' WHERE xid >= pg_snapshot_xmax(here) OR xid = ANY (running);
  EXCEPTION WHEN check_violation THEN
    SELECT array_agg(format('ADD CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid)) ORDER BY k.conname),
           array_agg(format('DROP CONSTRAINT %I', k.conname)) INTO bounds, unbounds FROM pg_constraint k
     WHERE k.conrelid = 'webhookd.outbox'::regclass AND k.contype = 'c' AND NOT k.convalidated;
    EXECUTE 'ALTER TABLE webhookd.outbox ' || array_to_string(unbounds, ', ');
    UPDATE webhookd.outbox SET xid = '0' WHERE xid >= pg_snapshot_xmax(here) OR xid = ANY (running);
    EXECUTE 'ALTER TABLE webhookd.outbox ' || array_to_string(bounds, ', ');
  END;
  -- Logical replication copies rows, not how far sequences are, and no number may be given twice.
  FOR numbered IN
    SELECT c.oid::regclass AS relation, a.attname AS id, pg_get_serial_sequence(c.oid::regclass::text, a.attname)::regclass AS sequence
      FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attidentity <> '' WHERE c.relnamespace = 'webhookd'::regnamespace
    UNION ALL VALUES ('webhookd.outbox'::regclass, 'id'::name, 'webhookd.outbox_id_seq'::regclass), ('webhookd.daemon', 'id', 'webhookd.daemon_id_seq')
  LOOP
    EXECUTE format('SELECT setval(%L::regclass, q.newest) FROM (SELECT max(%I) AS newest FROM %s) q
                     WHERE q.newest > COALESCE(pg_sequence_last_value(%L::regclass), 0)', numbered.sequence, numbered.id, numbered.relation, numbered.sequence);
  END LOOP;
  DELETE FROM webhookd.binding;
  INSERT INTO webhookd.binding (system_identifier, environment) SELECT system_identifier::text, rebase.environment FROM pg_control_system();
  INSERT INTO webhookd.audit (action, subject, after) VALUES ('rebase', environment, json_build_object('place', webhookd.place(), 'owed', owed));
END $$;
