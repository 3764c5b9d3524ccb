-- name: token_known
-- Whose it is, if it counts; that it was used is written down once a minute.
WITH found AS MATERIALIZED (
  SELECT k.* FROM webhookd.token k LEFT JOIN webhookd.tenant t ON t.id = k.tenant
   WHERE k.hash = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) AND (k.tenant IS NULL OR t.deleted_at IS NULL)
     AND NOT EXISTS (SELECT FROM webhookd.endpoint e WHERE e.id = k.endpoint_id AND e.removed_at IS NOT NULL)),
used AS (UPDATE webhookd.token k SET used_at = now() FROM found f WHERE k.id = f.id AND (f.used_at IS NULL OR f.used_at < now() - interval '1 min'))
SELECT id, role, tenant, capabilities, name, feature_flags, endpoint_id FROM found;

-- name: token_add
WITH made AS (
  INSERT INTO webhookd.token (id, hash, role, tenant, capabilities, name, by, expires_at, feature_flags, endpoint_id)
  VALUES ($1, $2, $3, $4, $5, $6, $7, now() + $8::float8 * interval '1 s', $9, $10) RETURNING *)
INSERT INTO webhookd.audit (who, action, subject, tenant, after)
SELECT m.by, 'create token', m.id, (SELECT t.key FROM webhookd.tenant t WHERE t.id = m.tenant),
       json_build_object('role', m.role, 'name', m.name, 'capabilities', m.capabilities, 'expires_at', m.expires_at) FROM made m;

-- name: tokens
-- The newest first.
SELECT k.id, k.role, COALESCE(t.uid, t.id), k.capabilities, k.name, k.by, k.created_at, k.expires_at, k.revoked_at, k.used_at
  FROM webhookd.token k LEFT JOIN webhookd.tenant t ON t.id = k.tenant
 WHERE $1 OR k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
 ORDER BY k.id DESC LIMIT 1000;

-- name: token_of_endpoint
-- The newest that polls it, of those that count.
SELECT k.id, k.role, COALESCE(t.uid, t.id), k.capabilities, k.name, k.by, k.created_at, k.expires_at, k.revoked_at, k.used_at
  FROM webhookd.token k LEFT JOIN webhookd.tenant t ON t.id = k.tenant
 WHERE k.endpoint_id = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) ORDER BY k.id DESC LIMIT 1;

-- name: tokens_expire_of_endpoint
-- Those before the newest end, in so many seconds at the latest.
UPDATE webhookd.token k SET expires_at = now() + $2::float8 * interval '1 s'
 WHERE k.endpoint_id = $1 AND k.id <> $3 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now() + $2::float8 * interval '1 s');

-- name: token_revoke
WITH ended AS (UPDATE webhookd.token SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL RETURNING *),
noted AS (
  INSERT INTO webhookd.audit (who, action, subject, tenant, before)
  SELECT $2, 'revoke token', e.id, (SELECT t.key FROM webhookd.tenant t WHERE t.id = e.tenant), json_build_object('role', e.role, 'name', e.name) FROM ended e)
SELECT id FROM ended;

-- name: tokens_expire
-- Those that let somebody into the portal of a tenant end, in so many seconds at the latest.
WITH ended AS (
  UPDATE webhookd.token t SET expires_at = now() + $2 * interval '1 s'
   WHERE t.tenant = $1 AND t.role = 'portal' AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now() + $2 * interval '1 s') RETURNING t.id)
INSERT INTO webhookd.audit (who, action, subject, tenant, after)
SELECT $3, 'expire tokens', $1, (SELECT t.key FROM webhookd.tenant t WHERE t.id = $1), json_build_object('tokens', count(*), 'seconds', $2::float8) FROM ended HAVING count(*) > 0;
