-- How attempts went: of each endpoint by the minute for two days, then by the hour. Daemons add rows, and nobody changes one.

-- A row is what one daemon saw of an endpoint in a minute; 0 stands for all endpoints. A slot has a day, of which at any time one is nobody's and is emptied whole.
CREATE TABLE webhookd.statistic (
  slot        smallint    NOT NULL,
  endpoint_id int         NOT NULL,
  at          timestamptz NOT NULL,
  delivered   int         NOT NULL,                   -- attempts that ended a delivery well
  failed      int         NOT NULL,                   -- that failed, after which there was to be another
  exhausted   int         NOT NULL,                   -- deliveries whose time was over
  rejected    int         NOT NULL,                   -- deliveries that will not be tried again
  took        int[]       NOT NULL                    -- attempts by how long they took: up to 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 20000 ms, and longer; zeros at the end are left out
) PARTITION BY LIST (slot);
CREATE INDEX statistic_endpoint ON webhookd.statistic (endpoint_id, at);
CREATE INDEX statistic_at ON webhookd.statistic USING brin (at) WITH (pages_per_range = 16, autosummarize = on);
DO $migration$
BEGIN
  FOR slot IN 0..3 LOOP
    EXECUTE format('CREATE TABLE webhookd.statistic_%s PARTITION OF webhookd.statistic FOR VALUES IN (%s)', slot, slot);
    EXECUTE format('ALTER TABLE webhookd.statistic_%s REPLICA IDENTITY FULL', slot);
  END LOOP;
END $migration$;
CREATE TABLE webhookd.statistic_hour (
  endpoint_id int NOT NULL, at timestamptz NOT NULL, delivered bigint NOT NULL, failed bigint NOT NULL, exhausted bigint NOT NULL, rejected bigint NOT NULL, took bigint[] NOT NULL,
  PRIMARY KEY (endpoint_id, at));
CREATE INDEX statistic_hour_at ON webhookd.statistic_hour (at);
-- Before this moment hours count, and from it on minutes.
CREATE TABLE webhookd.statistic_summed (one boolean PRIMARY KEY DEFAULT true CHECK (one), until timestamptz NOT NULL);
INSERT INTO webhookd.statistic_summed (until) VALUES (date_trunc('hour', now() - interval '2 days', 'UTC'));

CREATE FUNCTION webhookd.statistic_slot(at timestamptz) RETURNS smallint
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  SELECT (floor(extract(epoch FROM at) / 86400)::bigint % 4)::smallint
$$;

-- Make the next hour of its minutes when they are two days old, and let go of what is older than that or has been summed up; with the owner's rights, since that
-- leaves no dead row. An hour at a time, each in a transaction of its own; true when there may be more to do. It waits for nobody for long: another time will do.
CREATE FUNCTION webhookd.sum_up(keep interval) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on SET lock_timeout = '50ms' AS $$
DECLARE
  slot text := 'webhookd.statistic_' || webhookd.statistic_slot(now() + interval '1 day');
  done timestamptz;
  first timestamptz;
  filled boolean;
  gone bigint;
BEGIN
  SELECT s.until INTO done FROM webhookd.statistic_summed s FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN RETURN false; END IF;  -- another is at it
  IF done + interval '1 hour' <= now() - interval '2 days' THEN
    INSERT INTO webhookd.statistic_hour
    SELECT s.endpoint_id, done, sum(s.delivered), sum(s.failed), sum(s.exhausted), sum(s.rejected),
           ARRAY[sum(s.took[1]), sum(s.took[2]), sum(s.took[3]), sum(s.took[4]), sum(s.took[5]), sum(s.took[6]), sum(s.took[7]), sum(s.took[8]), sum(s.took[9]), sum(s.took[10]),
                 sum(s.took[11]), sum(s.took[12])]::bigint[]
      FROM webhookd.statistic s WHERE s.at >= done AND s.at < done + interval '1 hour' GROUP BY s.endpoint_id;
    GET DIAGNOSTICS gone = ROW_COUNT;
    first := done + interval '1 hour';
    IF gone = 0 THEN  -- nothing was sent for a while
      first := GREATEST(first, LEAST((SELECT date_trunc('hour', min(s.at), 'UTC') FROM webhookd.statistic s WHERE s.at >= first), date_trunc('hour', now() - interval '2 days', 'UTC')));
    END IF;
    UPDATE webhookd.statistic_summed SET until = first;
    RETURN true;
  END IF;
  EXECUTE format('SELECT EXISTS (SELECT FROM %s)', slot) INTO filled;
  IF filled THEN
    EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE at >= $1)', slot) INTO filled USING done;
    IF NOT filled THEN EXECUTE format('TRUNCATE %s', slot); END IF;
  END IF;
  DELETE FROM webhookd.statistic_hour h USING (SELECT g.endpoint_id, g.at FROM webhookd.statistic_hour g WHERE g.at < now() - keep ORDER BY g.at LIMIT 10000) g
   WHERE h.endpoint_id = g.endpoint_id AND h.at = g.at;
  GET DIAGNOSTICS gone = ROW_COUNT;
  RETURN gone > 0;
EXCEPTION
  WHEN lock_not_available THEN RETURN false;
END $$;

-- What there is of an endpoint, 0 for all, in a span: the sums.
CREATE FUNCTION webhookd.statistics(p_endpoint int, p_since timestamptz, p_until timestamptz, OUT delivered bigint, OUT failed bigint, OUT exhausted bigint, OUT rejected bigint, OUT took bigint[])
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
  SELECT COALESCE(sum(s.delivered), 0)::bigint, COALESCE(sum(s.failed), 0)::bigint, COALESCE(sum(s.exhausted), 0)::bigint, COALESCE(sum(s.rejected), 0)::bigint,
         ARRAY[COALESCE(sum(s.took[1]), 0), COALESCE(sum(s.took[2]), 0), COALESCE(sum(s.took[3]), 0), COALESCE(sum(s.took[4]), 0), COALESCE(sum(s.took[5]), 0), COALESCE(sum(s.took[6]), 0),
               COALESCE(sum(s.took[7]), 0), COALESCE(sum(s.took[8]), 0), COALESCE(sum(s.took[9]), 0), COALESCE(sum(s.took[10]), 0), COALESCE(sum(s.took[11]), 0),
               COALESCE(sum(s.took[12]), 0)]::bigint[]
    FROM (SELECT m.delivered, m.failed, m.exhausted, m.rejected, m.took::bigint[] FROM webhookd.statistic m
           WHERE m.endpoint_id = p_endpoint AND m.at >= GREATEST(p_since, (SELECT d.until FROM webhookd.statistic_summed d)) AND m.at < p_until
          UNION ALL
          SELECT h.delivered, h.failed, h.exhausted, h.rejected, h.took FROM webhookd.statistic_hour h WHERE h.endpoint_id = p_endpoint AND h.at >= p_since AND h.at < p_until) s
$$;
REVOKE EXECUTE ON FUNCTION webhookd.statistic_slot(timestamptz), webhookd.sum_up(interval), webhookd.statistics(int, timestamptz, timestamptz) FROM PUBLIC;
