-- name: rights
-- What this role may of what a daemon has to: the schema, these tables and sequences, and all functions but some. Nothing where there is no schema.
WITH here AS MATERIALIZED (SELECT oid FROM pg_namespace WHERE nspname = 'webhookd'),
found AS (
  SELECT 'schema' AS kind, 'SCHEMA webhookd' AS what, 'USAGE' AS name, has_schema_privilege(h.oid, 'USAGE') AS granted FROM here h
  UNION ALL
  SELECT 'table', 'webhookd.' || quote_ident(c.relname), r.name, has_table_privilege(c.oid, r.name)
    FROM here h JOIN pg_class c ON c.relnamespace = h.oid AND c.relkind IN ('r', 'p')
    JOIN unnest($1::text[], $2::text[]) w(relation, rights) ON w.relation = c.relname CROSS JOIN LATERAL regexp_split_to_table(w.rights, ' ') r(name)
  UNION ALL
  SELECT 'sequence', 'SEQUENCE webhookd.' || quote_ident(c.relname), 'USAGE', has_sequence_privilege(c.oid, 'USAGE')
    FROM here h JOIN pg_class c ON c.relnamespace = h.oid AND c.relkind = 'S'
  UNION ALL
  SELECT 'function', format('FUNCTION %s', p.oid::regprocedure), 'EXECUTE', has_function_privilege(p.oid, 'EXECUTE')
    FROM here h JOIN pg_proc p ON p.pronamespace = h.oid AND p.prorettype <> 'trigger'::regtype AND p.proname <> ALL ($3::text[]))
SELECT quote_ident(current_user) AS role, kind, what, name, granted FROM found
 ORDER BY array_position(ARRAY['schema', 'table', 'sequence', 'function'], kind), what, name;
