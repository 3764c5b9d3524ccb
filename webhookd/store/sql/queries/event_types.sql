-- name: event_type
SELECT name, description, schemas, archived, deprecated, feature_flags, created_at, updated_at FROM webhookd.event_type WHERE name = $1;

-- name: event_type_locked
SELECT name, description, schemas, archived, deprecated, feature_flags, created_at, updated_at FROM webhookd.event_type WHERE name = $1 FOR NO KEY UPDATE;

-- name: event_types_rising
SELECT name, description, schemas, archived, deprecated, feature_flags, created_at, updated_at FROM webhookd.event_type
 WHERE ($1::text IS NULL OR name > $1) AND ($2 OR NOT archived)
   AND ($4::text[] IS NULL OR COALESCE(feature_flags, '{}') = '{}' OR feature_flags && $4) ORDER BY name LIMIT $3;

-- name: event_types_falling
SELECT name, description, schemas, archived, deprecated, feature_flags, created_at, updated_at FROM webhookd.event_type
 WHERE ($1::text IS NULL OR name < $1) AND ($2 OR NOT archived)
   AND ($4::text[] IS NULL OR COALESCE(feature_flags, '{}') = '{}' OR feature_flags && $4) ORDER BY name DESC LIMIT $3;

-- name: event_type_add
-- One that was archived comes back as it is now wanted.
WITH made AS (
  INSERT INTO webhookd.event_type AS t (name, description, schemas, archived, deprecated, feature_flags) VALUES ($1, $2, $3, $4, $5, $6)
  ON CONFLICT (name) DO UPDATE SET description = $2, schemas = $3, archived = $4, deprecated = $5, feature_flags = $6, updated_at = now() WHERE t.archived
  RETURNING *),
noted AS (INSERT INTO webhookd.audit (action, subject, after) SELECT 'create event type', m.name, to_json(m) FROM made m)
SELECT name, description, schemas, archived, deprecated, feature_flags, created_at, updated_at FROM made;

-- name: event_type_change
WITH before AS MATERIALIZED (SELECT * FROM webhookd.event_type WHERE name = $1 FOR NO KEY UPDATE),
changed AS (
  UPDATE webhookd.event_type t SET description = $2, schemas = $3, archived = $4, deprecated = $5, feature_flags = $6, updated_at = now()
    FROM before b WHERE t.name = b.name RETURNING t.*),
noted AS (
  INSERT INTO webhookd.audit (action, subject, before, after)
  SELECT 'change event type', c.name, to_json(b), to_json(c) FROM changed c JOIN before b USING (name))
SELECT name, description, schemas, archived, deprecated, feature_flags, created_at, updated_at FROM changed;

-- name: event_type_end
WITH ended AS (DELETE FROM webhookd.event_type WHERE name = $1 RETURNING *),
noted AS (INSERT INTO webhookd.audit (action, subject, before) SELECT 'delete event type', e.name, to_json(e) FROM ended e)
SELECT name FROM ended;

-- name: event_types_fitting
-- Those that patterns fit, and that somebody with such flags sees; the first of them.
SELECT name, description, schemas, archived, deprecated, feature_flags, created_at, updated_at FROM webhookd.event_type t
 WHERE NOT archived AND ($2::text[] IS NULL OR COALESCE(feature_flags, '{}') = '{}' OR feature_flags && $2)
   AND EXISTS (SELECT FROM unnest($1::text[]) p WHERE p = '*' OR p = t.name OR p LIKE '%.*' AND starts_with(t.name, left(p, -1))) ORDER BY name LIMIT $3;

-- name: event_types_unknown
SELECT p FROM unnest($1::text[]) p
 WHERE NOT EXISTS (SELECT FROM webhookd.event_type t WHERE NOT t.archived AND CASE WHEN p LIKE '%.*' THEN starts_with(t.name, left(p, -1)) ELSE t.name = p END)
 ORDER BY 1;
