-- What webhookd does must depend on no default of a session, a role or a database, and wait for no lock that a stranger can take.

-- Locks that only daemons and the owner take: they lock these tables, which have no rows, and whoever may not write to them may not either. The mode
-- excludes itself and disturbs no SELECT, no pg_dump and no lock of others; it writes no WAL, takes no transaction id, and unlike EXCLUSIVE need not
-- look into every other process first.
CREATE TABLE webhookd.lock_log ();        -- reading the log, and deciding who reads it with a cursor
CREATE TABLE webhookd.lock_tables ();     -- migrations, partitions, what is swept
CREATE TABLE webhookd.lock_endpoints ();  -- writing the endpoints of the files

-- What judges by what others have committed must see that. A function cannot change how its transaction sees, so it refuses.
CREATE FUNCTION webhookd.expect_read_committed() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'this must run in a transaction that is READ COMMITTED, and this one is %', upper(current_setting('transaction_isolation'))
      USING ERRCODE = 'invalid_transaction_state', HINT = 'Begin it with BEGIN ISOLATION LEVEL READ COMMITTED, or SET default_transaction_isolation.';
  END IF;
END $$;
CREATE FUNCTION webhookd.lock_log() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM webhookd.expect_read_committed();
  LOCK TABLE webhookd.lock_log IN SHARE UPDATE EXCLUSIVE MODE;
END $$;
CREATE FUNCTION webhookd.lock_endpoints() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM webhookd.expect_read_committed();
  LOCK TABLE webhookd.lock_endpoints IN SHARE UPDATE EXCLUSIVE MODE;
END $$;
CREATE FUNCTION webhookd.lock_tables() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM webhookd.expect_read_committed();
  LOCK TABLE webhookd.lock_tables IN SHARE UPDATE EXCLUSIVE MODE;
END $$;
-- False when another has it.
CREATE FUNCTION webhookd.try_lock_log() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  IF pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'read committed' THEN PERFORM webhookd.expect_read_committed(); END IF;
  LOCK TABLE webhookd.lock_log IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
  RETURN true;
EXCEPTION WHEN lock_not_available THEN RETURN false;
END $$;
CREATE FUNCTION webhookd.try_lock_tables() RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM webhookd.expect_read_committed();
  LOCK TABLE webhookd.lock_tables IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
  RETURN true;
EXCEPTION WHEN lock_not_available THEN RETURN false;
END $$;

-- DEFAULT becomes a dated partition for the gap that one of its rows is in, as before; but rows that lie more than a week ahead of the last partition,
-- as a clock leaves them that was wrong for a moment, get their day alone, so that the days before it can be made.
CREATE OR REPLACE FUNCTION webhookd.swap_default(parent text, OUT done text, OUT problem text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  field text := CASE parent WHEN 'outbox' THEN 'created_at' ELSE 'at' END;
  main text := parent || '_default';
  fields text := (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
                   WHERE attrelid = to_regclass('webhookd.' || quote_ident(parent)) AND attnum > 0 AND NOT attisdropped AND attgenerated = '');
  tomorrow timestamptz := date_trunc('day', now(), 'UTC') + interval '24 hours';
  some_row timestamptz;
  low timestamptz;
  high timestamptz;
BEGIN
  EXECUTE format('SELECT COALESCE((SELECT %1$I FROM webhookd.%2$I WHERE %1$I < $1 LIMIT 1), (SELECT min(%1$I) FROM webhookd.%2$I WHERE isfinite(%1$I)))', field, main)
     INTO some_row USING tomorrow;
  IF some_row IS NULL THEN
    problem := 'it has rows at infinity, which no partition can be made for';
    done := main;
    RETURN;
  END IF;
  SELECT max(p.until) INTO low FROM webhookd.partitions(parent) p WHERE p.until <= some_row;
  SELECT COALESCE(min(p.since), GREATEST(tomorrow, date_trunc('day', some_row, 'UTC') + interval '24 hours')) INTO high
    FROM webhookd.partitions(parent) p WHERE p.since > some_row;
  done := format('%s_until_%s', parent, to_char(high AT TIME ZONE 'UTC', 'YYYYMMDD'));
  IF some_row > GREATEST(low, now()) + interval '168 hours' THEN
    low := date_trunc('day', some_row, 'UTC');
    high := LEAST(high, low + interval '24 hours');
    done := parent || to_char(low AT TIME ZONE 'UTC', '_YYYYMMDD');
  END IF;
  EXECUTE format('ALTER TABLE webhookd.%I DETACH PARTITION webhookd.%I', parent, main);
  EXECUTE format('ALTER TABLE webhookd.%I RENAME TO %I', main, done);
  EXECUTE format('CREATE TABLE webhookd.%I PARTITION OF webhookd.%I DEFAULT', main, parent);
  EXECUTE format('WITH stray AS (DELETE FROM webhookd.%I WHERE %I < %L OR %I >= %L RETURNING %s) INSERT INTO webhookd.%I (%s) SELECT * FROM stray',
                 done, field, COALESCE(low, '-infinity'), field, high, fields, main, fields);
  EXECUTE format('ALTER TABLE webhookd.%I ATTACH PARTITION webhookd.%I FOR VALUES FROM (%s) TO (%L)',
                 parent, done, COALESCE(quote_literal(low), 'MINVALUE'), high);
EXCEPTION
  WHEN lock_not_available THEN problem := 'a transaction that uses ' || parent || ' is open';
  WHEN duplicate_table THEN problem := done || ' is there already';
END $$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA webhookd FROM PUBLIC;
GRANT EXECUTE ON FUNCTION webhookd.partitions(text), webhookd.rows_in_default() TO PUBLIC;
