-- All functions as they are, but for the locks they take, which are those of 0010; and all of them see to what their text depends on: how moments and
-- intervals are written, what a backslash in a literal is, and that rows which row security would hide are an error. Not `wake` and `emit`, which run at
-- every INSERT of every application and depend on none of it; `cut` and `place` run so often that they have only what they need.
DO $migration$
DECLARE
  f record;
  text_of_it text;
BEGIN
  FOR f IN SELECT p.oid, p.proname, p.prosrc, p.oid::regprocedure AS signature FROM pg_catalog.pg_proc p
            WHERE p.pronamespace = 'webhookd'::regnamespace AND p.prokind = 'f' AND p.proname NOT IN ('wake', 'emit') ORDER BY p.oid LOOP
    text_of_it := pg_catalog.pg_get_functiondef(f.oid);
    text_of_it := replace(text_of_it, 'pg_advisory_xact_lock(7301, 0), pg_advisory_xact_lock(7301, 1), pg_advisory_xact_lock(7301, 3)',
                                      'webhookd.lock_tables(), webhookd.lock_log(), webhookd.lock_endpoints()');
    text_of_it := replace(text_of_it, 'pg_advisory_xact_lock(7301, 1)', 'webhookd.lock_log()');
    text_of_it := replace(text_of_it, 'pg_try_advisory_xact_lock(7301, 1)', 'webhookd.try_lock_log()');
    text_of_it := replace(text_of_it, 'pg_try_advisory_xact_lock(7301, 0)', 'webhookd.try_lock_tables()');
    IF f.proname = 'give_up' THEN
      text_of_it := replace(text_of_it, E'\nBEGIN\n', E'\nBEGIN\n  PERFORM webhookd.expect_read_committed();\n');
    END IF;
    IF text_of_it <> pg_catalog.pg_get_functiondef(f.oid) THEN EXECUTE text_of_it; END IF;
    CONTINUE WHEN f.proname IN ('place', 'expect_read_committed') OR f.proname LIKE '%lock_%';
    EXECUTE format('ALTER FUNCTION %s SET row_security = off', f.signature);
    CONTINUE WHEN f.proname = 'cut';
    EXECUTE format('ALTER FUNCTION %s SET DateStyle = ''ISO''', f.signature);
    EXECUTE format('ALTER FUNCTION %s SET IntervalStyle = ''postgres''', f.signature);
    EXECUTE format('ALTER FUNCTION %s SET TimeZone = ''UTC''', f.signature);
    EXECUTE format('ALTER FUNCTION %s SET standard_conforming_strings = on', f.signature);
  END LOOP;
END $migration$;

-- Whoever has the old lock at this moment finishes before others take the new one. A stranger who has it is in nobody's way any longer.
DO $migration$
BEGIN
  PERFORM pg_catalog.pg_advisory_xact_lock(7301, 1);
EXCEPTION WHEN lock_not_available THEN NULL;
END $migration$;
