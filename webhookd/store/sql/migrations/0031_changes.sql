-- What of the endpoints has changed since a version, so that of 10,000 a daemon reads the one that did.
ALTER TABLE webhookd.endpoint ADD COLUMN changed_at_version bigint NOT NULL DEFAULT 0;
CREATE INDEX endpoint_changed ON webhookd.endpoint (changed_at_version, id);
ALTER TABLE webhookd.daemon ADD COLUMN key_ids text[];  -- names of the keys by which it opens what the API has made; without them such is in endpoint_ids

-- Whoever changes one, of whatever version, has the lock of the endpoints and raises the version before it commits. Who changes only what is sealed marks it
-- itself, which an API of before this version does not: run none beside this.
CREATE FUNCTION webhookd.mark_endpoint() RETURNS trigger
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  NEW.changed_at_version := (SELECT v.version + 1 FROM webhookd.config_version v);
  RETURN NEW;
END $$;
REVOKE EXECUTE ON FUNCTION webhookd.mark_endpoint() FROM PUBLIC;
CREATE TRIGGER endpoint_added BEFORE INSERT ON webhookd.endpoint FOR EACH ROW EXECUTE FUNCTION webhookd.mark_endpoint();
CREATE TRIGGER endpoint_changed BEFORE UPDATE OF spec, removed_at ON webhookd.endpoint FOR EACH ROW
  WHEN (OLD.spec IS DISTINCT FROM NEW.spec OR OLD.removed_at IS DISTINCT FROM NEW.removed_at) EXECUTE FUNCTION webhookd.mark_endpoint();
