-- breaking: a daemon that matches by the rules before would leave out endpoints that are owed an event.

-- As before, but that of a list one of its items is enough: an endpoint with channels gets what has one of them.
CREATE OR REPLACE FUNCTION webhookd.passes(filter jsonb, metadata json) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  labels jsonb;
BEGIN
  IF COALESCE(filter, '{}') = '{}' THEN RETURN true; END IF;
  IF metadata IS NULL THEN RETURN false; END IF;
  labels := regexp_replace(metadata::text, E'(?<!\\\\)((?:\\\\\\\\)*)\\\\u0000', E'\\1\\\\uffff', 'g');
  RETURN jsonb_typeof(labels) = 'object' AND NOT EXISTS (
    SELECT FROM jsonb_each(filter) f(label, wanted)
     WHERE NOT labels ? f.label
        OR COALESCE(labels ->> f.label, 'null') NOT IN (SELECT jsonb_array_elements_text(f.wanted))
       AND NOT (jsonb_typeof(labels -> f.label) = 'array' AND EXISTS (
             SELECT FROM jsonb_array_elements_text(labels -> f.label) i(item) WHERE COALESCE(i.item, 'null') IN (SELECT jsonb_array_elements_text(f.wanted)))));
EXCEPTION
  WHEN data_exception OR program_limit_exceeded THEN RETURN false;
END $$;
