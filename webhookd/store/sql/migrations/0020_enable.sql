-- A pause and a disable are two things, and so are their ends.

-- As before, but that it leaves a disable alone.
CREATE OR REPLACE FUNCTION webhookd.resume(ids int[]) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  PERFORM webhookd.lock_log();
  RETURN QUERY
  WITH before AS MATERIALIZED (SELECT e.id, e.paused_at FROM webhookd.endpoint e WHERE e.id = ANY (ids)),
  changed AS (UPDATE webhookd.endpoint e SET paused_at = NULL, resumed_at = now() WHERE e.id = ANY (ids) AND e.paused_at IS NOT NULL RETURNING e.*),
  noted AS (
    INSERT INTO webhookd.audit (action, subject, tenant, before)
    SELECT 'resume', concat_ws('/', NULLIF(c.tenant, ''), c.name), c.tenant, json_build_object('paused_at', b.paused_at)
      FROM changed c JOIN before b USING (id) ORDER BY c.tenant, c.name)
  SELECT c.id FROM changed c;
  UPDATE webhookd.config_version SET parked = parked + 1;
END $$;

-- A person says that a receiver is back. What came while its endpoint was disabled is a range that it missed; a pause of an operator goes on.
CREATE FUNCTION webhookd.enable(ids int[]) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  last bigint;
  enabled int[];
BEGIN
  PERFORM webhookd.lock_log();
  SELECT max(b.id) + 1 INTO last FROM webhookd.batch b;
  WITH before AS MATERIALIZED (SELECT e.id, e.disabled_at, e.disabled_why FROM webhookd.endpoint e WHERE e.id = ANY (ids)),
  changed AS (
    UPDATE webhookd.endpoint e SET disabled_at = NULL, disabled_why = NULL, revived_at = clock_timestamp()
     WHERE e.id = ANY (ids) AND e.disabled_at IS NOT NULL RETURNING e.*),
  noted AS (
    INSERT INTO webhookd.audit (action, subject, tenant, before)
    SELECT 'enable', concat_ws('/', NULLIF(c.tenant, ''), c.name), c.tenant, json_build_object('disabled_at', b.disabled_at, 'disabled_why', b.disabled_why)
      FROM changed c JOIN before b USING (id) ORDER BY c.tenant, c.name)
  SELECT array_agg(c.id ORDER BY c.id) INTO enabled FROM changed c;
  IF enabled IS NULL THEN RETURN; END IF;
  DELETE FROM webhookd.parked p WHERE p.endpoint_id = ANY (enabled) AND p.reason = 'disabled' AND p.from_batch = last;  -- nothing came
  WITH ended AS (
    UPDATE webhookd.parked p SET to_batch = last, next_batch = last
     WHERE p.endpoint_id = ANY (enabled) AND p.reason = 'disabled' AND p.to_batch IS NULL RETURNING p.endpoint_id, p.from_batch)
  INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason)
  SELECT d.endpoint_id, d.from_batch, last, 'disabled' FROM ended d WHERE d.from_batch < last ON CONFLICT DO NOTHING;
  PERFORM webhookd.park(ARRAY(SELECT e.id FROM webhookd.endpoint e WHERE e.id = ANY (enabled) AND e.paused_at IS NOT NULL), 'paused');
  UPDATE webhookd.config_version SET parked = parked + 1;
  RETURN QUERY SELECT unnest(enabled);
END $$;

-- Disable an endpoint unless it was enabled after `since`, which is when whoever says that it is gone had asked it. Judged behind the lock: somebody may be
-- enabling it at this moment. True when that is so.
CREATE FUNCTION webhookd.disable_since(p int, why text, since timestamptz) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  PERFORM webhookd.lock_log();
  IF EXISTS (SELECT FROM webhookd.endpoint e WHERE e.id = p AND e.revived_at >= since) THEN RETURN false; END IF;
  RETURN webhookd.disable(p, why);
END $$;

-- Disable an endpoint if its last `failures` attempts and more have failed, the first of them so many seconds ago, all since it was last enabled or resumed;
-- a 429 is no failure, nor is what was sent on somebody's word. True when that is so.
CREATE FUNCTION webhookd.disable_failing(p int, failures int, seconds float8) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  good timestamptz;
  bad timestamptz;
BEGIN
  SELECT GREATEST((SELECT a.at FROM webhookd.attempt a WHERE a.endpoint_id = p AND a.ok ORDER BY a.at DESC LIMIT 1), e.revived_at, e.resumed_at, '-infinity')
    INTO good FROM webhookd.endpoint e WHERE e.id = p AND e.disabled_at IS NULL AND e.paused_at IS NULL;
  SELECT min(a.at) INTO bad FROM webhookd.attempt a
   WHERE a.endpoint_id = p AND a.at > good AND NOT a.ok AND a.code IS DISTINCT FROM 429 AND a.trigger IS DISTINCT FROM 'resend' HAVING count(*) >= failures;
  IF bad IS NULL OR bad > now() - seconds * interval '1 s' THEN RETURN false; END IF;
  RETURN webhookd.disable_since(p, 'failing', bad);
END $$;
REVOKE EXECUTE ON FUNCTION webhookd.enable(int[]), webhookd.disable_since(int, text, timestamptz), webhookd.disable_failing(int, int, float8) FROM PUBLIC;
