-- name: audit
-- Somebody does this.
INSERT INTO webhookd.audit (who, action, subject, before, after) VALUES ($1, $2, $3, $4, $5);

-- name: audited
-- What people have done, the newest first.
SELECT id, at, who, role, action, subject, tenant, before, after FROM webhookd.audit
 WHERE ($1::bigint IS NULL OR id < $1) AND ($2::text IS NULL OR action = $2) AND ($3::text IS NULL OR $3 IN (subject, tenant, after ->> 'endpoint'))
   AND ($4::float8 IS NULL OR at >= now() - $4 * interval '1 s')
 ORDER BY id DESC LIMIT $5;
