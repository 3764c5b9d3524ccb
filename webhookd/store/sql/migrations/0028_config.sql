-- Which endpoints there are, as of now and not as of the statement that asks: a daemon must know at least these before it says who is owed what was just
-- cut, since an endpoint may have been made a moment before its first event.
CREATE FUNCTION webhookd.config_now() RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  SELECT v.version FROM webhookd.config_version v
$$;
REVOKE EXECUTE ON FUNCTION webhookd.config_now() FROM PUBLIC;
