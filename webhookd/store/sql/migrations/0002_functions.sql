-- What producers, people and the janitor call.

-- Daily partitions (UTC) of outbox and attempt, from today on. Gives those it made, and those it could not make with the reason.
-- Runs with the owner's rights, because only the owner of a table may attach to it. LIKE and ATTACH take no lock on the parent that an
-- INSERT waits for; the lock on DEFAULT is waited for briefly, since readers of all partitions queue behind it.
CREATE FUNCTION webhookd.make_partitions(days int) RETURNS TABLE (partition text, problem text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
  today date := (now() AT TIME ZONE 'UTC')::date;
  parent text;
  day date;
BEGIN
  IF NOT pg_try_advisory_xact_lock(7301, 0) THEN RETURN; END IF;  -- another is at it, or migrates
  FOREACH parent IN ARRAY ARRAY['outbox', 'attempt'] LOOP
    FOR day IN SELECT today + i FROM generate_series(0, days - 1) i LOOP
      partition := parent || to_char(day, '_YYYYMMDD');
      CONTINUE WHEN to_regclass('webhookd.' || partition) IS NOT NULL;
      problem := NULL;
      BEGIN
        -- No CHECK of its own: an empty table has nothing to scan, and the check would be made at every INSERT.
        EXECUTE format('CREATE TABLE webhookd.%I (LIKE webhookd.%I INCLUDING ALL)', partition, parent);
        EXECUTE format('ALTER TABLE webhookd.%I ATTACH PARTITION webhookd.%I FOR VALUES FROM (%L) TO (%L)',
                       parent, partition, day || ' 00:00:00+00', day + 1 || ' 00:00:00+00');
      EXCEPTION
        WHEN check_violation THEN problem := 'rows of that day are in ' || parent || '_default';
        WHEN lock_not_available THEN problem := parent || '_default is in use';
      END;
      RETURN NEXT;
      EXIT WHEN problem LIKE '%in use';  -- once is enough of a stall; the next run tries again
    END LOOP;
  END LOOP;
END $$;

-- The INSERT as a function, for who may or can only call one. Gives the event_id.
CREATE FUNCTION webhookd.emit(
  type text, payload json, tenant text DEFAULT '', ordering_key text DEFAULT NULL, metadata json DEFAULT NULL,
  event_id text DEFAULT NULL, occurred_at timestamptz DEFAULT NULL, deliver_after timestamptz DEFAULT NULL
) RETURNS text
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  INSERT INTO webhookd.outbox AS o (type, payload, tenant, ordering_key, metadata, event_id, occurred_at, deliver_after)
  VALUES (emit.type, emit.payload, emit.tenant, emit.ordering_key, emit.metadata,
          COALESCE(emit.event_id, gen_random_uuid()::text), emit.occurred_at, emit.deliver_after)
  RETURNING o.event_id
$$;

-- What became of an event: a row per endpoint that has an attempt or a backlog row, or else one row without an endpoint.
-- waiting, sending and unmatched are nowhere written down: they follow from the batch, because a healthy delivery has no row.
CREATE FUNCTION webhookd.event_status(event_id text)
RETURNS TABLE (outbox_id bigint, endpoint text, state text, attempts int, last_code smallint, last_error text,
               due timestamptz, last_attempt_at timestamptz)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
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
  SELECT e.id, NULL, CASE WHEN b.id IS NULL THEN 'waiting' WHEN b.done_at IS NULL THEN 'sending' ELSE 'unmatched' END,
         0, NULL, NULL, CASE WHEN b.id IS NULL THEN e.deliver_after END, NULL
  FROM event e
  LEFT JOIN LATERAL (  -- the index on hi leads to the first batch that can hold it, which is nearly always the one
    SELECT c.id, c.done_at FROM webhookd.batch c
    WHERE c.hi >= e.created_at AND c.lo <= e.created_at AND e.id = ANY (c.outbox_ids)
      AND NOT EXISTS (SELECT FROM webhookd.scheduled s WHERE s.due = e.deliver_after AND s.outbox_id = e.id)
    ORDER BY c.hi LIMIT 1) b ON true
  WHERE NOT EXISTS (SELECT FROM known k WHERE k.outbox_id = e.id)
  ORDER BY 1, 2
$$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA webhookd FROM PUBLIC;
