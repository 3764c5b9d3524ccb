-- Who changes several endpoints locks them by their numbers, as the files of a daemon do, so that neither waits for the other for ever.

-- As before, in that order.
CREATE OR REPLACE FUNCTION webhookd.pause(ids int[]) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  PERFORM webhookd.lock_log();
  PERFORM FROM webhookd.endpoint e WHERE e.id = ANY (ids) AND e.paused_at IS NULL ORDER BY e.id FOR NO KEY UPDATE;
  RETURN QUERY
  WITH changed AS (UPDATE webhookd.endpoint e SET paused_at = now() WHERE e.id = ANY (ids) AND e.paused_at IS NULL RETURNING e.*),
  noted AS (
    INSERT INTO webhookd.audit (action, subject, tenant, after)
    SELECT 'pause', concat_ws('/', NULLIF(c.tenant, ''), c.name), c.tenant, json_build_object('paused_at', c.paused_at) FROM changed c ORDER BY c.tenant, c.name)
  SELECT c.id FROM changed c;
  PERFORM webhookd.park(ids, 'paused');
  UPDATE webhookd.config_version SET parked = parked + 1;
END $$;
CREATE OR REPLACE FUNCTION webhookd.resume(ids int[]) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  PERFORM webhookd.lock_log();
  PERFORM FROM webhookd.endpoint e WHERE e.id = ANY (ids) AND e.paused_at IS NOT NULL ORDER BY e.id FOR NO KEY UPDATE;
  RETURN QUERY
  WITH before AS MATERIALIZED (SELECT e.id, e.paused_at FROM webhookd.endpoint e WHERE e.id = ANY (ids)),
  changed AS (UPDATE webhookd.endpoint e SET paused_at = NULL, resumed_at = now() WHERE e.id = ANY (ids) AND e.paused_at IS NOT NULL RETURNING e.*),
  probed AS (UPDATE webhookd.parked k SET retry_at = now() FROM changed c WHERE k.endpoint_id = c.id AND k.to_batch IS NULL AND k.fails > 0),
  noted AS (
    INSERT INTO webhookd.audit (action, subject, tenant, before)
    SELECT 'resume', concat_ws('/', NULLIF(c.tenant, ''), c.name), c.tenant, json_build_object('paused_at', b.paused_at)
      FROM changed c JOIN before b USING (id) ORDER BY c.tenant, c.name)
  SELECT c.id FROM changed c;
  UPDATE webhookd.config_version SET parked = parked + 1;
END $$;
