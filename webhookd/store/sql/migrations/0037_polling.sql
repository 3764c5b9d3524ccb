-- breaking: a daemon of the version before would owe polled endpoints requests, and nobody would send them.

-- Who fetches events instead of being sent them: how far each has come. One that has a name goes on from there.
CREATE TABLE webhookd.consumer (
  endpoint_id int         NOT NULL,
  name        text        COLLATE "C" NOT NULL,
  batch       bigint      NOT NULL,                   -- it has all before this batch,
  pos         int         NOT NULL,                   -- and so many events of it; 65535 for all of them
  nonce       bigint      NOT NULL,                   -- of that batch: after a failover the same id may be another's
  cut_at      timestamptz NOT NULL,                   -- of that batch; then it reads again from there
  made_at     timestamptz NOT NULL DEFAULT now(),
  used_at     timestamptz NOT NULL DEFAULT now(),
  missed_from timestamptz,                            -- what retention took before it was read, until it has been told that
  missed_to   timestamptz,
  missed      int,                                    -- events; NULL when nobody has counted them
  PRIMARY KEY (endpoint_id, name)
) WITH (fillfactor = 50);                             -- nothing that changes is indexed
ALTER TABLE webhookd.token ADD COLUMN endpoint_id int;  -- of one that may do nothing but poll this endpoint

-- The first batch that has an event of this moment or later, or that was `cut` then, give or take a minute; NULL when there is none. Later ones were cut
-- later; but the clock of a cut is that of its beginning, so that it may seem to be older than what it has read.
CREATE FUNCTION webhookd.batch_since(at timestamptz, cut boolean DEFAULT false) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  low bigint := (SELECT min(b.id) FROM webhookd.batch b);
  high bigint := (SELECT max(b.id) FROM webhookd.batch b);
  middle bigint;
  found record;
BEGIN
  IF low IS NULL THEN RETURN NULL; END IF;
  WHILE low < high LOOP
    middle := low + (high - low) / 2;
    SELECT b.id, b.cut_at INTO found FROM webhookd.batch b WHERE b.id >= middle ORDER BY b.id LIMIT 1;
    IF found.cut_at >= at - interval '1 min' THEN
      high := middle;
    ELSE
      low := found.id + 1;
    END IF;
  END LOOP;
  RETURN (SELECT b.id FROM webhookd.batch b WHERE b.id >= low AND (cut OR b.hi >= at) ORDER BY b.id LIMIT 1);
END $$;

-- The first batch of which all events are kept, as far as retention is concerned: until that moment, or as it is.
CREATE FUNCTION webhookd.first_kept(until timestamptz DEFAULT NULL) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  SELECT COALESCE(webhookd.batch_since(COALESCE(first_kept.until, (SELECT o.created_at FROM webhookd.outbox o WHERE isfinite(o.created_at) ORDER BY o.id LIMIT 1))),
                  (SELECT max(b.id) FROM webhookd.batch b))
$$;

-- Consumers that have not read what retention takes next go on behind it, and are told how much that was. Of all of them together 100,000 events are looked
-- at; beyond that, and behind a filter of payloads, nobody counts. Before `maintain`, as its locks must not wait for this.
CREATE FUNCTION webhookd.move_consumers(events interval) RETURNS TABLE (endpoint_id int, name text, missed int)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET jit = off SET enable_seqscan = off
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  until timestamptz;
  part record;
  first bigint;
  last record;
  lagging record;
  counted int;
  seen int;
  room int := 100000;
BEGIN
  IF (now() - events <= now() - interval '1 day') IS NOT TRUE THEN  -- a month has no length of its own
    RAISE invalid_parameter_value USING MESSAGE = 'events are kept for a day at least: write move_consumers(events => ''7 days'')';
  END IF;
  IF NOT EXISTS (SELECT FROM webhookd.consumer) THEN RETURN; END IF;
  FOR part IN SELECT p.* FROM webhookd.partitions('outbox') p WHERE p.until <= now() - events ORDER BY p.until LOOP
    IF webhookd.needed(part.name, part.since, part.until) IS NULL THEN
      until := part.until;
      EXIT;
    END IF;
  END LOOP;
  IF until IS NULL THEN RETURN; END IF;
  first := webhookd.first_kept(until);
  SELECT b.id, b.nonce, b.cut_at, cardinality(b.outbox_ids) AS size INTO last FROM webhookd.batch b WHERE b.id < first ORDER BY b.id DESC LIMIT 1;
  IF last.id IS NULL THEN RETURN; END IF;
  FOR lagging IN SELECT c.*, e.tenant, e.spec FROM webhookd.consumer c JOIN webhookd.endpoint e ON e.id = c.endpoint_id
                  WHERE (c.batch < last.id OR c.batch = last.id AND c.pos < last.size) AND e.spec ->> 'kind' = 'poll' AND e.removed_at IS NULL ORDER BY c.endpoint_id, c.name LOOP
    counted := NULL;
    IF room > 0 AND NOT lagging.spec ? 'data_filter' THEN
      SELECT count(*) FILTER (WHERE o.wanted), count(*) INTO counted, seen FROM (
        SELECT x.id, b.lo, b.hi FROM webhookd.batch b CROSS JOIN LATERAL unnest(b.outbox_ids) WITH ORDINALITY x(id, place)
         WHERE b.id BETWEEN lagging.batch AND last.id AND (b.id > lagging.batch OR x.place > lagging.pos) ORDER BY b.id, x.place LIMIT room) g
        LEFT JOIN LATERAL (
          SELECT lagging.tenant IN (k.tenant, '*')
                 AND EXISTS (SELECT FROM jsonb_array_elements_text(lagging.spec -> 'events') s(pattern)
                              WHERE s.pattern = k.type OR s.pattern = '*' AND NOT starts_with(k.type, 'webhookd.')
                                 OR s.pattern LIKE '%.*' AND starts_with(k.type, left(s.pattern, -1)))
                 AND (COALESCE(lagging.spec -> 'filter', '{}') = '{}' OR webhookd.passes(lagging.spec -> 'filter', k.metadata))
                 AND NOT EXISTS (SELECT FROM webhookd.unreadable u WHERE u.outbox_id = k.id)
                 AND NOT (EXISTS (SELECT FROM webhookd.discard) AND webhookd.is_discarded(k.type, k.tenant, k.created_at, lagging.endpoint_id)) AS wanted
            FROM webhookd.outbox k WHERE k.id = g.id AND k.created_at BETWEEN g.lo AND g.hi OFFSET 0) o ON true;
      IF seen >= room THEN counted := NULL; END IF;
      room := room - seen;
    END IF;
    UPDATE webhookd.consumer c
       SET batch = last.id, pos = 65535, nonce = last.nonce, cut_at = last.cut_at,
           missed_from = CASE WHEN counted = 0 THEN c.missed_from ELSE COALESCE(c.missed_from, c.cut_at) END,
           missed_to = CASE WHEN counted = 0 THEN c.missed_to ELSE last.cut_at END,
           missed = CASE WHEN c.missed_to IS NULL THEN NULLIF(counted, 0) ELSE c.missed + counted END
     WHERE c.endpoint_id = lagging.endpoint_id AND c.name = lagging.name AND c.batch = lagging.batch AND c.pos = lagging.pos;
    CONTINUE WHEN NOT FOUND OR counted = 0;
    INSERT INTO webhookd.missed AS m (endpoint_id, from_batch, to_batch, reason)
    VALUES (lagging.endpoint_id, lagging.batch + (lagging.pos = 65535)::int, last.id + 1, 'unread')
    ON CONFLICT ON CONSTRAINT missed_pkey DO UPDATE SET to_batch = GREATEST(m.to_batch, EXCLUDED.to_batch);
    endpoint_id := lagging.endpoint_id;
    name := lagging.name;
    missed := counted;
    RETURN NEXT;
  END LOOP;
END $$;

-- An endpoint that was sent to may still be owed what was to be sent, and nobody would send it; so none becomes another kind.
CREATE FUNCTION webhookd.keep_kind() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  RAISE check_violation USING MESSAGE = format('endpoint %s is %s, and stays so: give the new one another name', concat_ws('/', NULLIF(OLD.tenant, ''), OLD.name),
                                               CASE WHEN OLD.spec ->> 'kind' = 'poll' THEN 'polled' ELSE 'sent to' END);
END $$;
CREATE TRIGGER endpoint_kept BEFORE UPDATE OF spec ON webhookd.endpoint FOR EACH ROW
  WHEN (COALESCE(OLD.spec ->> 'kind', 'push') <> COALESCE(NEW.spec ->> 'kind', 'push')) EXECUTE FUNCTION webhookd.keep_kind();

-- As before, but for those that nothing is sent to.
CREATE OR REPLACE FUNCTION webhookd.pause(ids int[]) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  ids := ARRAY(SELECT e.id FROM webhookd.endpoint e WHERE e.id = ANY (ids) AND e.spec ->> 'kind' IS DISTINCT FROM 'poll');
  PERFORM webhookd.lock_log();
  PERFORM FROM webhookd.endpoint e WHERE e.id = ANY (ids) AND e.paused_at IS NULL ORDER BY e.id FOR NO KEY UPDATE;
  RETURN QUERY
  WITH changed AS (UPDATE webhookd.endpoint e SET paused_at = now() WHERE e.id = ANY (ids) AND e.paused_at IS NULL RETURNING e.*),
  noted AS (
    INSERT INTO webhookd.audit (action, subject, tenant, after)
    SELECT 'pause', concat_ws('/', NULLIF(c.tenant, ''), c.name), c.tenant, json_build_object('paused_at', c.paused_at) FROM changed c ORDER BY c.tenant, c.name)
  SELECT c.id FROM changed c;
  PERFORM webhookd.park(ids, 'paused');
  UPDATE webhookd.config_version SET parked = parked + 1;
END $$;

-- As before; whom it is fetched by has no row, and is `polled`.
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
  , polled AS MATERIALIZED (  -- what fetches it has no row, whether it has done so or not; a filter of payloads is not looked at
    SELECT e.id AS outbox_id, p.tenant, p.name FROM event e
      JOIN held b ON b.event = e.id
      JOIN webhookd.outbox o ON o.id = e.id AND o.created_at = e.created_at
      JOIN webhookd.endpoint p ON p.tenant IN (o.tenant, '*') AND p.removed_at IS NULL AND p.spec ->> 'kind' = 'poll' AND p.spec ->> 'active' IS DISTINCT FROM 'false'
     WHERE EXISTS (SELECT FROM jsonb_array_elements_text(p.spec -> 'events') x(pattern)
                    WHERE x.pattern = o.type OR x.pattern = '*' AND NOT starts_with(o.type, 'webhookd.')
                       OR x.pattern LIKE '%.*' AND starts_with(o.type, left(x.pattern, -1)))
       AND (COALESCE(p.spec -> 'filter', '{}') = '{}' OR webhookd.passes(p.spec -> 'filter', o.metadata)))
  SELECT k.outbox_id,
         COALESCE(CASE WHEN p.tenant = '' THEN p.name ELSE p.tenant || '/' || p.name END, '#' || k.endpoint_id),
         k.state, k.attempts, k.last_code, k.last_error, k.due, k.last_attempt_at
  FROM known k LEFT JOIN webhookd.endpoint p ON p.id = k.endpoint_id
  UNION ALL
  SELECT a.outbox_id, CASE WHEN p.tenant = '' THEN p.name ELSE p.tenant || '/' || p.name END, a.state, 0, NULL, a.reason, NULL, NULL
  FROM aside a JOIN webhookd.endpoint p ON p.id = a.endpoint_id
  UNION ALL
  SELECT p.outbox_id, CASE WHEN p.tenant = '' THEN p.name ELSE p.tenant || '/' || p.name END, 'polled', 0, NULL, NULL, NULL, NULL FROM polled p
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
    AND NOT EXISTS (SELECT FROM polled p WHERE p.outbox_id = e.id)
  ORDER BY 1, 2
$$;

REVOKE EXECUTE ON FUNCTION webhookd.batch_since(timestamptz, boolean), webhookd.first_kept(timestamptz), webhookd.move_consumers(interval), webhookd.keep_kind() FROM PUBLIC;
