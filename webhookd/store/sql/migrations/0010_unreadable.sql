-- An event that no daemon can read must stop none. What is cheap to forbid at the INSERT is forbidden there: the names of these constraints are the
-- sentences that the application's error says, and `webhookd emit` with them. Not valid, so nothing is scanned: rows that are there already are met by
-- `unreadable`. Bounds in characters, since columns that are copied from are varchar(255): a type may be two of them with a dot. Metadata has room for
-- what W3C has for traces (traceparent 55 bytes, tracestate 512, baggage 8,192), and for as many bytes of labels.
-- `own` is what tells our events of others', since producers have no right to write it, and `emit` does not: nobody forges one, not even by mistake.
-- The constraint comes three migrations later, when no call of the old `tell` is under way any longer.
ALTER TABLE webhookd.outbox
  ADD COLUMN own boolean NOT NULL DEFAULT false,
  ADD CONSTRAINT "type may have 512 characters at most" CHECK (char_length(type) <= 512) NOT VALID,
  ADD CONSTRAINT "tenant may have 255 characters at most" CHECK (char_length(tenant) <= 255) NOT VALID,
  ADD CONSTRAINT "ordering_key may have 512 characters at most" CHECK (char_length(ordering_key) <= 512) NOT VALID,
  ADD CONSTRAINT "metadata may have 16 KiB at most: put more into the payload" CHECK (octet_length(metadata::text) <= 16384) NOT VALID,
  ADD CONSTRAINT "occurred_at must lie in the years 1 to 9999"
      CHECK (occurred_at >= '0001-01-01 00:00:00+00' AND occurred_at < '10000-01-01 00:00:00+00') NOT VALID,
  ADD CONSTRAINT "deliver_after must lie in the years 1 to 9999"
      CHECK (deliver_after >= '0001-01-01 00:00:00+00' AND deliver_after < '10000-01-01 00:00:00+00') NOT VALID,
  ADD CONSTRAINT "created_at must lie in the years 1970 to 9999"
      CHECK (created_at >= '1970-01-01 00:00:00+00' AND created_at < '10000-01-01 00:00:00+00') NOT VALID;

-- What operators may subscribe to: an event of our own about an endpoint, which it is never owed itself.
CREATE OR REPLACE FUNCTION webhookd.tell(kind text, p int, about json DEFAULT '{}', event_id text DEFAULT gen_random_uuid()::text) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  INSERT INTO webhookd.outbox (own, event_id, type, tenant, payload, metadata)
  SELECT true, tell.event_id, 'webhookd.' || tell.kind, CASE e.tenant WHEN '*' THEN '' ELSE e.tenant END,
         (json_build_object('endpoint', l.label, 'tenant', e.tenant, 'name', e.name)::jsonb || tell.about::jsonb)::json, json_build_object('endpoint', l.label)
    FROM webhookd.endpoint e CROSS JOIN LATERAL (SELECT CASE WHEN e.tenant = '' THEN e.name ELSE e.tenant || '/' || e.name END AS label) l
   WHERE e.id = tell.p
$$;

-- Events that could not be read, with what was wrong: nobody is owed them. A row goes with its event.
CREATE TABLE webhookd.unreadable (
  outbox_id bigint      PRIMARY KEY,
  why       text        NOT NULL,
  at        timestamptz NOT NULL DEFAULT now()
);

-- Functions depend on no default of a session, a role or a database: from here on each says what its text depends on, which is how moments and intervals
-- are written, what a backslash in a literal is, and that rows which row security would hide are an error. Not `wake` and `emit`, which run at every
-- INSERT of every application and depend on none of it; `cut` and `place` run so often that they have only what they need.

-- True when each key of an endpoint's filter has one of its values in the metadata, as the daemon sees it. Metadata that jsonb does not take, for its
-- depth or a lone surrogate, passes none. \u0000, which text cannot hold, becomes a character that no filter names.
CREATE FUNCTION webhookd.passes(filter jsonb, metadata json) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  labels jsonb;
BEGIN
  IF COALESCE(filter, '{}') = '{}' THEN RETURN true; END IF;
  IF metadata IS NULL THEN RETURN false; END IF;
  labels := regexp_replace(metadata::text, E'(?<!\\\\)((?:\\\\\\\\)*)\\\\u0000', E'\\1\\\\uffff', 'g');
  RETURN jsonb_typeof(labels) = 'object' AND NOT EXISTS (
    SELECT FROM jsonb_each(filter) f(label, wanted)
     WHERE NOT labels ? f.label OR COALESCE(labels ->> f.label, 'null') NOT IN (SELECT jsonb_array_elements_text(f.wanted)));
EXCEPTION
  WHEN data_exception OR program_limit_exceeded THEN RETURN false;
END $$;
REVOKE EXECUTE ON FUNCTION webhookd.passes(jsonb, json) FROM PUBLIC;

-- What became of an event: a row per endpoint that has an attempt or a backlog row, or whose cursor has not come to it (`parked`), or that was disabled
-- when it came (`missed`); or else one row without an endpoint. waiting, sending and unmatched are nowhere written down: they follow from the batch,
-- because a healthy delivery has no row. `missed` and `unreadable` have the reason. With the owner's rights, since filters look at metadata, which whoever
-- asks need not be allowed to read.
CREATE OR REPLACE FUNCTION webhookd.event_status(event_id text)
RETURNS TABLE (outbox_id bigint, endpoint text, state text, attempts int, last_code smallint, last_error text,
               due timestamptz, last_attempt_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  WITH event AS MATERIALIZED (
    SELECT o.id, o.created_at, o.deliver_after, o.type, o.tenant, o.metadata FROM webhookd.outbox o WHERE o.event_id = event_status.event_id),
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
  aside AS MATERIALIZED (  -- those that match by all but what only reading it would tell
    SELECT e.id AS outbox_id, k.endpoint_id, CASE k.reason WHEN 'disabled' THEN 'missed' ELSE 'parked' END AS state, k.reason
    FROM event e JOIN held b ON b.event = e.id
    JOIN webhookd.parked k ON b.id >= k.from_batch AND (b.id < k.to_batch OR k.to_batch IS NULL) AND (b.id >= k.next_batch OR k.reason = 'disabled')
    JOIN webhookd.endpoint p ON p.id = k.endpoint_id
    WHERE p.tenant IN (e.tenant, '*') AND EXISTS (
            SELECT FROM jsonb_array_elements_text(p.spec -> 'events') x(pattern)
            WHERE x.pattern = e.type OR x.pattern = '*' AND NOT starts_with(e.type, 'webhookd.')
               OR x.pattern LIKE '%.*' AND starts_with(e.type, left(x.pattern, -1)))
      AND webhookd.passes(p.spec -> 'filter', e.metadata)
      AND NOT EXISTS (SELECT FROM webhookd.unreadable u WHERE u.outbox_id = e.id)),
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
  WHERE NOT EXISTS (SELECT FROM known k WHERE k.outbox_id = a.outbox_id AND k.endpoint_id = a.endpoint_id)
  UNION ALL
  SELECT e.id, NULL,
         CASE WHEN u.outbox_id IS NOT NULL THEN 'unreadable' WHEN b.id IS NULL THEN 'waiting' WHEN b.done_at IS NULL THEN 'sending' WHEN m.reason IS NULL THEN 'unmatched' ELSE 'missed' END,
         0, NULL, COALESCE(u.why, m.reason), CASE WHEN b.id IS NULL THEN e.deliver_after END, NULL
  FROM event e
  LEFT JOIN held b ON b.event = e.id
  LEFT JOIN webhookd.unreadable u ON u.outbox_id = e.id
  LEFT JOIN LATERAL (SELECT r.reason FROM webhookd.missed r WHERE b.id >= r.from_batch AND b.id < r.to_batch LIMIT 1) m ON true
  WHERE u.outbox_id IS NOT NULL
     OR NOT EXISTS (SELECT FROM known k WHERE k.outbox_id = e.id) AND NOT EXISTS (SELECT FROM aside a WHERE a.outbox_id = e.id)
  ORDER BY 1, 2
$$;

-- Erase what events say: payload, metadata, what receivers answered, and what is owed. That attempts were made stays. Of a tenant 10,000 events of the
-- log at a time, after the number `after`; gives the number to go on after, or NULL at the end. For the owner alone.
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
  IF dry_run OR events = 0 THEN RETURN; END IF;
  UPDATE webhookd.attempt a SET response = NULL
   WHERE a.outbox_id = ANY (ids) AND a.at >= low - interval '1 min' AND a.response IS NOT NULL;
  DELETE FROM webhookd.backlog b WHERE b.outbox_id = ANY (ids);
  DELETE FROM webhookd.unreadable u WHERE u.outbox_id = ANY (ids);
  DELETE FROM webhookd.scheduled z WHERE z.outbox_id = ANY (ids);
  DELETE FROM webhookd.outbox o WHERE o.id = ANY (ids) AND o.created_at >= low;
END $$;
