-- name: endpoint
-- Of a tenant: one that it has made, by its id or uid, or that a file has for it alone, by its name.
SELECT e.id, e.name, e.uid, e.source, e.spec, e.metadata, e.created_at, e.updated_at, e.disabled_at, e.paused_at,
       (SELECT v.key_id FROM webhookd.sealed v WHERE v.endpoint_id = e.id AND v.name = 'url'), (SELECT v.content FROM webhookd.sealed v WHERE v.endpoint_id = e.id AND v.name = 'url')
  FROM webhookd.endpoint e
 WHERE tenant = $1 AND (name = $2 OR uid = $2) AND removed_at IS NULL ORDER BY name = $2 DESC LIMIT 1;

-- name: endpoints_rising
SELECT e.id, e.name, e.uid, e.source, e.spec, e.metadata, e.created_at, e.updated_at, e.disabled_at, e.paused_at,
       (SELECT v.key_id FROM webhookd.sealed v WHERE v.endpoint_id = e.id AND v.name = 'url'), (SELECT v.content FROM webhookd.sealed v WHERE v.endpoint_id = e.id AND v.name = 'url')
  FROM webhookd.endpoint e
 WHERE tenant = $1 AND removed_at IS NULL AND ($2::text IS NULL OR name COLLATE "C" > $2) ORDER BY name COLLATE "C" LIMIT $3;

-- name: endpoints_falling
SELECT e.id, e.name, e.uid, e.source, e.spec, e.metadata, e.created_at, e.updated_at, e.disabled_at, e.paused_at,
       (SELECT v.key_id FROM webhookd.sealed v WHERE v.endpoint_id = e.id AND v.name = 'url'), (SELECT v.content FROM webhookd.sealed v WHERE v.endpoint_id = e.id AND v.name = 'url')
  FROM webhookd.endpoint e
 WHERE tenant = $1 AND removed_at IS NULL AND ($2::text IS NULL OR name COLLATE "C" < $2) ORDER BY name COLLATE "C" DESC LIMIT $3;

-- name: endpoints_made
SELECT count(*) FROM webhookd.endpoint WHERE tenant = $1 AND source = 'api' AND removed_at IS NULL;

-- name: endpoints_of_tenant
SELECT id FROM webhookd.endpoint WHERE tenant = $1 AND source = 'api' AND removed_at IS NULL ORDER BY id;

-- name: endpoint_add
WITH made AS (
  INSERT INTO webhookd.endpoint (tenant, name, uid, source, spec, metadata) VALUES ($1, $2, $3, 'api', $4, $5) ON CONFLICT DO NOTHING RETURNING *),
noted AS (
  INSERT INTO webhookd.audit (action, subject, tenant, after)
  SELECT 'create endpoint', concat_ws('/', NULLIF(m.tenant, ''), m.name), m.tenant, json_build_object('uid', m.uid, 'metadata', m.metadata, 'spec', m.spec) FROM made m)
SELECT id, name, uid, source, spec, metadata, created_at, updated_at, disabled_at, paused_at, NULL::text, NULL::bytea FROM made;

-- name: endpoint_change
WITH before AS MATERIALIZED (SELECT * FROM webhookd.endpoint WHERE id = $1 AND source = 'api' AND removed_at IS NULL FOR NO KEY UPDATE),
changed AS (
  UPDATE webhookd.endpoint e SET uid = $2, spec = $3, metadata = $4, updated_at = now() FROM before b WHERE e.id = b.id RETURNING e.*),
noted AS (
  INSERT INTO webhookd.audit (action, subject, tenant, before, after)
  SELECT 'change endpoint', concat_ws('/', NULLIF(c.tenant, ''), c.name), c.tenant, json_build_object('uid', b.uid, 'metadata', b.metadata, 'spec', b.spec),
         json_build_object('uid', c.uid, 'metadata', c.metadata, 'spec', c.spec) FROM changed c JOIN before b USING (id))
SELECT c.id, c.name, c.uid, c.source, c.spec, c.metadata, c.created_at, c.updated_at, c.disabled_at, c.paused_at,
       (SELECT v.key_id FROM webhookd.sealed v WHERE v.endpoint_id = c.id AND v.name = 'url'), (SELECT v.content FROM webhookd.sealed v WHERE v.endpoint_id = c.id AND v.name = 'url')
  FROM changed c;

-- name: endpoint_end
-- What it is owed ends with it, of very much the first; the rest is sent to nobody, and goes with its events. Nothing secret is kept of it.
WITH ended AS (UPDATE webhookd.endpoint SET removed_at = now() WHERE id = $1 AND source = 'api' AND removed_at IS NULL RETURNING *),
owed AS MATERIALIZED (
  SELECT b.endpoint_id, b.outbox_id FROM ended e JOIN webhookd.backlog b ON b.endpoint_id = e.id AND b.state IN ('retry', 'held')
   ORDER BY 1, 2 LIMIT 10000 FOR UPDATE OF b SKIP LOCKED),
over AS (
  UPDATE webhookd.backlog b SET state = 'rejected', last_error = 'endpoint_removed', due = now() FROM owed o
   WHERE b.endpoint_id = o.endpoint_id AND b.outbox_id = o.outbox_id),
signed AS (DELETE FROM webhookd.secret s USING ended e WHERE s.endpoint_id = e.id),
unsealed AS (DELETE FROM webhookd.sealed s USING ended e WHERE s.endpoint_id = e.id),
noted AS (
  INSERT INTO webhookd.audit (action, subject, tenant, before)
  SELECT 'delete endpoint', concat_ws('/', NULLIF(e.tenant, ''), e.name), e.tenant, e.spec FROM ended e)
SELECT id FROM ended;

-- name: rotate_secret
-- Those before end after so many seconds, or earlier where they would have, and go when they have ended.
WITH gone AS (DELETE FROM webhookd.secret WHERE endpoint_id = $1 AND until <= now()),
others AS (
  UPDATE webhookd.secret SET until = LEAST(until, clock_timestamp() + $4::float8 * interval '1 s') WHERE endpoint_id = $1 AND (until IS NULL OR until > now())),
noted AS (
  INSERT INTO webhookd.audit (action, subject, tenant)
  SELECT 'rotate secret', concat_ws('/', NULLIF(p.tenant, ''), p.name), p.tenant FROM webhookd.endpoint p WHERE p.id = $1)
INSERT INTO webhookd.secret (endpoint_id, number, key_id, sealed)
SELECT $1, COALESCE((SELECT max(s.number) + 1 FROM webhookd.secret s WHERE s.endpoint_id = $1), 1), $2, $3;

-- name: seal_values
WITH gone AS (DELETE FROM webhookd.sealed WHERE endpoint_id = $1 AND name <> ALL ($2::text[]) AND name <> ALL ($5::text[]))
INSERT INTO webhookd.sealed (endpoint_id, name, key_id, content) SELECT $1, u.* FROM unnest($2::text[], $3::text[], $4::bytea[]) u
ON CONFLICT (endpoint_id, name) DO UPDATE SET key_id = EXCLUDED.key_id, content = EXCLUDED.content;

-- name: sealed_values
SELECT endpoint_id, name, key_id, content FROM webhookd.sealed WHERE endpoint_id = ANY ($1::int[]);

-- name: endpoint_by_number
SELECT tenant, name, source, spec FROM webhookd.endpoint WHERE id = $1 AND removed_at IS NULL;

-- name: endpoints_polled
SELECT id FROM webhookd.endpoint WHERE id = ANY($1::int[]) AND spec ->> 'kind' = 'poll';

-- name: endpoint_changed
-- All daemons look at it: who reads an event that is committed later knows of this.
WITH raised AS (UPDATE webhookd.config_version SET version = version + 1 RETURNING version)
UPDATE webhookd.endpoint e SET changed_at_version = r.version FROM raised r WHERE e.id = ANY ($1::int[]);

-- name: changed_endpoints
-- Those that have changed since a version, some behind that one, with all that is sealed of them, and which version this is of; or all that are there
-- (a change to one of before the first version), but for these. Where there are none, one row says the version.
SELECT v.version, c.* FROM webhookd.config_version v LEFT JOIN LATERAL (
SELECT e.id, e.tenant, e.name, e.source, e.removed_at IS NOT NULL AS is_gone, e.changed_at_version, e.spec,
       ARRAY(SELECT s.key_id FROM webhookd.secret s WHERE s.endpoint_id = e.id AND (s.until IS NULL OR s.until > now()) ORDER BY s.number DESC),
       ARRAY(SELECT s.sealed FROM webhookd.secret s WHERE s.endpoint_id = e.id AND (s.until IS NULL OR s.until > now()) ORDER BY s.number DESC),
       ARRAY(SELECT extract(epoch FROM s.until)::float8 FROM webhookd.secret s WHERE s.endpoint_id = e.id AND (s.until IS NULL OR s.until > now()) ORDER BY s.number DESC),
       ARRAY(SELECT x.name FROM webhookd.sealed x WHERE x.endpoint_id = e.id ORDER BY x.name),
       ARRAY(SELECT x.key_id FROM webhookd.sealed x WHERE x.endpoint_id = e.id ORDER BY x.name),
       ARRAY(SELECT x.content FROM webhookd.sealed x WHERE x.endpoint_id = e.id ORDER BY x.name)
  FROM webhookd.endpoint e
 WHERE (e.changed_at_version, e.id) > ($1::bigint, $2::int) AND ($3::int[] IS NULL OR e.removed_at IS NULL AND NOT EXISTS (SELECT FROM unnest($3) own WHERE own = e.id))
 ORDER BY e.changed_at_version, e.id LIMIT $4) c ON true;
