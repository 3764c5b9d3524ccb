-- name: tenant
-- The living one with this id or uid.
SELECT id, key, uid, name, metadata, rate, created_at, updated_at, NULLIF(since, '-infinity') AS since
  FROM webhookd.tenant WHERE (id = $1 OR uid = $1) AND deleted_at IS NULL ORDER BY id = $1 DESC LIMIT 1;

-- name: tenant_locked
SELECT id, key, uid, name, metadata, rate, created_at, updated_at, NULLIF(since, '-infinity') AS since
  FROM webhookd.tenant WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE;

-- name: tenants_rising
SELECT id, key, uid, name, metadata, rate, created_at, updated_at, NULLIF(since, '-infinity') AS since
  FROM webhookd.tenant WHERE ($1::text IS NULL OR id > $1) AND deleted_at IS NULL ORDER BY id LIMIT $2;

-- name: tenants_falling
SELECT id, key, uid, name, metadata, rate, created_at, updated_at, NULLIF(since, '-infinity') AS since
  FROM webhookd.tenant WHERE ($1::text IS NULL OR id < $1) AND deleted_at IS NULL ORDER BY id DESC LIMIT $2;

-- name: tenant_taken
-- Has another living tenant this uid, or is it what producers write for another? A deleted one had its key, which may be had again.
SELECT FROM webhookd.tenant WHERE (uid = $1 OR key = $1) AND deleted_at IS NULL AND id IS DISTINCT FROM $2;

-- name: tenant_add
-- Who takes a key that another had sees nothing older than itself.
WITH made AS (
  INSERT INTO webhookd.tenant (id, key, uid, name, metadata, rate, since)
  SELECT $1, COALESCE($2, $1), $2, $3, $4, $5,
         CASE WHEN EXISTS (SELECT FROM webhookd.tenant t WHERE t.key = COALESCE($2, $1)) THEN now() ELSE '-infinity' END
  ON CONFLICT DO NOTHING RETURNING *),
noted AS (
  INSERT INTO webhookd.audit (action, subject, tenant, after)
  SELECT 'create tenant', m.id, m.key, json_build_object('uid', m.uid, 'name', m.name, 'metadata', m.metadata, 'rate', m.rate) FROM made m)
SELECT id, key, uid, name, metadata, rate, created_at, updated_at, NULLIF(since, '-infinity') AS since FROM made;

-- name: tenant_change
WITH before AS MATERIALIZED (SELECT * FROM webhookd.tenant WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE),
changed AS (
  UPDATE webhookd.tenant t SET uid = $2, name = $3, metadata = $4, rate = $5, updated_at = now() FROM before b WHERE t.id = b.id RETURNING t.*),
noted AS (
  INSERT INTO webhookd.audit (action, subject, tenant, before, after)
  SELECT 'change tenant', c.id, c.key, json_build_object('uid', b.uid, 'name', b.name, 'metadata', b.metadata, 'rate', b.rate),
         json_build_object('uid', c.uid, 'name', c.name, 'metadata', c.metadata, 'rate', c.rate) FROM changed c JOIN before b USING (id))
SELECT id, key, uid, name, metadata, rate, created_at, updated_at, NULLIF(since, '-infinity') AS since FROM changed;

-- name: tenant_end
-- Its name and what else is said of it goes, too: the row stays for its key.
WITH ended AS (UPDATE webhookd.tenant t SET deleted_at = now(), uid = NULL, name = '', metadata = '{}' FROM webhookd.tenant was WHERE t.id = $1 AND t.deleted_at IS NULL AND was.id = t.id RETURNING was.*),
revoked AS (UPDATE webhookd.token k SET revoked_at = now() FROM ended e WHERE k.tenant = e.id AND k.revoked_at IS NULL),
noted AS (
  INSERT INTO webhookd.audit (action, subject, tenant, before)
  SELECT 'delete tenant', e.id, e.key, json_build_object('uid', e.uid, 'name', e.name, 'metadata', e.metadata, 'rate', e.rate) FROM ended e)
SELECT id FROM ended;

-- name: tenants_missing
-- Which of these keys no living tenant has.
SELECT k FROM unnest($1::text[]) k WHERE NOT EXISTS (SELECT FROM webhookd.tenant t WHERE t.key = k AND t.deleted_at IS NULL) ORDER BY 1;

-- name: tenants_of_files
-- Those that files name, so that there is an application for each. The key is its uid as well, where it can be one.
WITH made AS (
INSERT INTO webhookd.tenant (id, key, uid, name, since)
SELECT n.id, n.key,
       CASE WHEN n.key ~ '^[a-zA-Z0-9_.-]{1,255}$' AND NOT starts_with(n.key, 'app_')
             AND NOT EXISTS (SELECT FROM webhookd.tenant t WHERE t.uid = n.key AND t.deleted_at IS NULL) THEN n.key END,
       left(n.key, 1024), CASE WHEN EXISTS (SELECT FROM webhookd.tenant t WHERE t.key = n.key) THEN now() ELSE '-infinity' END
  FROM unnest($1::text[], $2::text[]) n(id, key) ORDER BY n.id
ON CONFLICT DO NOTHING RETURNING *)
INSERT INTO webhookd.audit (who, action, subject, tenant) SELECT 'files', 'create application', m.id, m.key FROM made m;
