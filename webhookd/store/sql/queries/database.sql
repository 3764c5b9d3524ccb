-- name: hidden
-- Tables whose rows row security may hide from us, or, where it is FORCED, from functions that run with the owner's rights; and whom that is.
SELECT c.relname, CASE WHEN row_security_active(c.oid) THEN current_user ELSE o.rolname END
  FROM pg_class c JOIN pg_roles o ON o.oid = c.relowner
 WHERE c.relnamespace = to_regnamespace('webhookd') AND c.relrowsecurity
   AND (row_security_active(c.oid) OR c.relforcerowsecurity AND NOT (o.rolsuper OR o.rolbypassrls)) ORDER BY 1;
