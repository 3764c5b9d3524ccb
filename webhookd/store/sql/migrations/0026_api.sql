-- What the HTTP API keeps: who has endpoints and events, who may do what, and what has been answered to a request that may come again.

-- A tenant, which the API calls an application. `id` sorts by the time that it was made.
CREATE TABLE webhookd.tenant (
  id         text        COLLATE "C" PRIMARY KEY,
  key        text        NOT NULL,                    -- what producers write into outbox.tenant; it never changes
  uid        text,                                    -- the caller's own name for it; that may
  name       text        NOT NULL,
  metadata   json        NOT NULL DEFAULT '{}',
  rate       int,                                     -- attempts a second, to all of its endpoints together
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  since      timestamptz NOT NULL DEFAULT '-infinity', -- of what is older nothing is shown: another had this key before
  deleted_at timestamptz
);
CREATE UNIQUE INDEX tenant_key ON webhookd.tenant (key) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX tenant_uid ON webhookd.tenant (uid) WHERE deleted_at IS NULL;
-- Whose events are of no tenant.
INSERT INTO webhookd.tenant (id, key, uid, name) VALUES ('app_' || repeat('0', 27), '', 'default', 'default');

-- Types that were registered; those of files are not here.
CREATE TABLE webhookd.event_type (
  name          text        COLLATE "C" PRIMARY KEY,
  description   text        NOT NULL DEFAULT '',
  schemas       json,                                 -- version -> JSON Schema
  archived      boolean     NOT NULL DEFAULT false,
  deprecated    boolean     NOT NULL DEFAULT false,
  feature_flags text[],
  created_at    timestamptz NOT NULL DEFAULT now(),
  updated_at    timestamptz NOT NULL DEFAULT now()
);

-- What a caller calls an event, which is not what receivers know it by. A row goes with its event.
CREATE TABLE webhookd.event_alias (
  tenant   text        NOT NULL,                      -- the key of the tenant
  alias    text        NOT NULL,
  event_id text        NOT NULL,
  at       timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant, alias)
);
CREATE INDEX event_alias_event_id ON webhookd.event_alias (event_id);
CREATE INDEX event_alias_at ON webhookd.event_alias (at);

-- Who may do what. A token itself is shown once and kept nowhere.
CREATE TABLE webhookd.token (
  id           text        COLLATE "C" PRIMARY KEY,
  hash         bytea       NOT NULL UNIQUE,           -- SHA-256
  role         text        NOT NULL,
  tenant       text,                                  -- the id of the only one whose things it is to see
  capabilities text[]      NOT NULL DEFAULT '{}',
  name         text        NOT NULL,
  by           text        NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT now(),
  expires_at   timestamptz,
  revoked_at   timestamptz,
  used_at      timestamptz
);
CREATE INDEX token_tenant ON webhookd.token (tenant);

-- What was answered to a request with an idempotency key within 12 hours: no token, secret or payload, as the answer is made again from this. A slot has
-- an hour of them; of the 16 slots three are nobody's at any time, and are emptied whole.
CREATE TABLE webhookd.request (
  slot   smallint    NOT NULL,
  key    bytea       NOT NULL,                        -- SHA-256 of token, key, method and path
  body   bytea       NOT NULL,                        -- SHA-256
  status smallint    NOT NULL,
  made   text,                                        -- the id of what was made
  at     timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (key, slot)                             -- the slot last: a key is looked for in all of them
) PARTITION BY LIST (slot);
DO $migration$
BEGIN
  FOR slot IN 0..15 LOOP
    EXECUTE format('CREATE TABLE webhookd.request_%s PARTITION OF webhookd.request FOR VALUES IN (%s)', slot, slot);
  END LOOP;
END $migration$;
CREATE FUNCTION webhookd.request_slot(at timestamptz) RETURNS smallint
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  SELECT (floor(extract(epoch FROM at) / 3600)::bigint % 16)::smallint
$$;

-- Empty the slots whose hours come next; with the owner's rights, since that leaves no dead row. Who asks reads all slots, so this waits for nobody, and
-- nobody for this: another time will do.
CREATE FUNCTION webhookd.forget_requests() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on SET lock_timeout = '50ms' AS $$
DECLARE
  slot text;
  found boolean;
BEGIN
  FOR ahead IN 1..3 LOOP
    slot := 'webhookd.request_' || webhookd.request_slot(now() + ahead * interval '1 hour');
    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', slot) INTO found;
    IF found THEN EXECUTE format('TRUNCATE %s', slot); END IF;
  END LOOP;
EXCEPTION
  WHEN lock_not_available THEN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION webhookd.request_slot(timestamptz), webhookd.forget_requests() FROM PUBLIC;

-- As before, and what the API keeps of events that are gone, and of requests.
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
  DELETE FROM webhookd.event_alias l WHERE (l.tenant, l.alias) IN (SELECT a.tenant, a.alias FROM webhookd.event_alias a WHERE a.at < oldest ORDER BY a.at LIMIT 10000);
  GET DIAGNOSTICS count = ROW_COUNT; swept := swept + count;
  DELETE FROM webhookd.token k WHERE LEAST(k.revoked_at, k.expires_at) < now() - interval '90 days';
  DELETE FROM webhookd.audit d WHERE d.id IN (SELECT a.id FROM webhookd.audit a WHERE a.at < now() - interval '90 days' ORDER BY a.id LIMIT 10000);
  RETURN swept;
END $$;
