-- What people have done: who, when, to what, and what that was before and after. Written in the transaction that does it, and by nobody changed.
CREATE TABLE webhookd.audit (
  id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at      timestamptz NOT NULL DEFAULT now(),
  who     text        NOT NULL DEFAULT COALESCE(NULLIF(current_setting('webhookd.who', true), ''), session_user),  -- as the command knows them: user@host
  role    text        NOT NULL DEFAULT session_user,  -- as Postgres knows them
  action  text        NOT NULL,
  subject text,                                       -- the label of an endpoint, the id of an event, a tenant
  tenant  text,                                       -- whose that is, where it is somebody's
  before  json,                                       -- what the action changed, without secrets
  after   json
);

-- As before, and that somebody did it.
CREATE OR REPLACE FUNCTION webhookd.pause(ids int[]) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  PERFORM webhookd.lock_log();
  RETURN QUERY
  WITH changed AS (UPDATE webhookd.endpoint e SET paused_at = now() WHERE e.id = ANY (ids) AND e.paused_at IS NULL RETURNING e.*),
  noted AS (
    INSERT INTO webhookd.audit (action, subject, tenant, after)
    SELECT 'pause', concat_ws('/', NULLIF(c.tenant, ''), c.name), c.tenant, json_build_object('paused_at', c.paused_at) FROM changed c ORDER BY c.tenant, c.name)
  SELECT c.id FROM changed c;
  PERFORM webhookd.park(ids, 'paused');
  UPDATE webhookd.config_version SET parked = parked + 1;
END $$;
CREATE OR REPLACE FUNCTION webhookd.resume(ids int[]) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  last bigint;
BEGIN
  PERFORM webhookd.lock_log();
  SELECT max(b.id) + 1 INTO last FROM webhookd.batch b;
  RETURN QUERY
  WITH before AS MATERIALIZED (
    SELECT e.id, json_strip_nulls(json_build_object('paused_at', e.paused_at, 'disabled_at', e.disabled_at, 'disabled_why', e.disabled_why)) AS was
      FROM webhookd.endpoint e WHERE e.id = ANY (ids)),
  changed AS (
  UPDATE webhookd.endpoint e SET paused_at = NULL, disabled_at = NULL, disabled_why = NULL,
         revived_at = CASE WHEN e.disabled_at IS NULL THEN e.revived_at ELSE clock_timestamp() END,
         resumed_at = CASE WHEN e.paused_at IS NULL THEN e.resumed_at ELSE now() END
   WHERE e.id = ANY (ids) AND (e.paused_at IS NOT NULL OR e.disabled_at IS NOT NULL) RETURNING e.*),
  noted AS (
    INSERT INTO webhookd.audit (action, subject, tenant, before)
    SELECT 'resume', concat_ws('/', NULLIF(c.tenant, ''), c.name), c.tenant, b.was FROM changed c JOIN before b USING (id) ORDER BY c.tenant, c.name)
  SELECT c.id FROM changed c;
  DELETE FROM webhookd.parked p WHERE p.endpoint_id = ANY (ids) AND p.reason = 'disabled' AND p.from_batch = last;  -- nothing came
  WITH ended AS (
    UPDATE webhookd.parked p SET to_batch = last, next_batch = last
     WHERE p.endpoint_id = ANY (ids) AND p.reason = 'disabled' AND p.to_batch IS NULL RETURNING p.endpoint_id, p.from_batch)
  INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason)
  SELECT d.endpoint_id, d.from_batch, last, 'disabled' FROM ended d WHERE d.from_batch < last ON CONFLICT DO NOTHING;
  UPDATE webhookd.config_version SET parked = parked + 1;
END $$;

-- As before; a tenant takes along what people have done with it, and that it was erased is written after that.
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
  IF after = 0 AND (tenant IS NOT NULL OR events > 0) THEN
    INSERT INTO webhookd.audit (action, subject, tenant) VALUES ('erase', COALESCE(event_id, tenant), tenant);
  END IF;
  IF events = 0 THEN RETURN; END IF;
  UPDATE webhookd.attempt a SET response = NULL
   WHERE a.outbox_id = ANY (ids) AND a.at >= low - interval '1 min' AND a.response IS NOT NULL;
  DELETE FROM webhookd.backlog b WHERE b.outbox_id = ANY (ids);
  DELETE FROM webhookd.unreadable u WHERE u.outbox_id = ANY (ids);
  DELETE FROM webhookd.scheduled z WHERE z.outbox_id = ANY (ids);
  DELETE FROM webhookd.outbox o WHERE o.id = ANY (ids) AND o.created_at >= low;
END $$;

-- As before, and that somebody did it; whatever tables give numbers, none is given twice.
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

-- As before, and what people did longer than 90 days ago.
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
  DELETE FROM webhookd.audit d WHERE d.id IN (SELECT a.id FROM webhookd.audit a WHERE a.at < now() - interval '90 days' ORDER BY a.id LIMIT 10000);
  RETURN swept;
END $$;
