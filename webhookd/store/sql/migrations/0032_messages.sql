-- The events of a tenant, listed and forgotten; and what a portal's token shows.

ALTER TABLE webhookd.token ADD COLUMN feature_flags text[] NOT NULL DEFAULT '{}';

-- What enciphers the numbers that people see in ids and iterators: one key for ever, and no secret of anybody's.
CREATE TABLE webhookd.cipher (one boolean PRIMARY KEY DEFAULT true CHECK (one), key bytea NOT NULL);
INSERT INTO webhookd.cipher (key) VALUES (decode(md5(gen_random_uuid()::text || gen_random_uuid()::text), 'hex'));

-- Of events with a tenant alone, so that who has none pays nothing; and none of before the bound of 255, for which an index has no room. Where there are events already, `webhookd migrate` builds it beside what is inserted.
CREATE INDEX outbox_tenant ON ONLY webhookd.outbox (tenant, id) WHERE tenant <> '' AND char_length(tenant) <= 255;
DO $migration$
DECLARE
  part text;
  found boolean;
BEGIN
  FOR part IN SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'webhookd.outbox'::regclass LOOP
    EXECUTE format('SELECT EXISTS (SELECT FROM webhookd.%I)', part) INTO found;
    IF NOT found THEN
      EXECUTE format('CREATE INDEX %I ON webhookd.%I (tenant, id) WHERE tenant <> %L AND char_length(tenant) <= 255', part || '_tenant', part, '');
      EXECUTE format('ALTER INDEX webhookd.outbox_tenant ATTACH PARTITION webhookd.%I', part || '_tenant');
    END IF;
  END LOOP;
END $migration$;

-- Which events are on a page: of the 5,000 of a tenant behind p_after those that fit, p_limit at most, and no more than 8 MiB of payloads, but for one. Where
-- the next page begins; NULL at the end. By words of its own, since only a plan for this very tenant knows of an index that some tenants are not in.
CREATE FUNCTION webhookd.message_page(
  p_tenant text, p_since timestamptz, p_until timestamptz, p_types text[], p_channel text, p_tag text, p_limit int, p_after bigint, p_back boolean, p_content boolean,
  OUT ids bigint[], OUT ats timestamptz[], OUT edge bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  looked_at text := format(
    'SELECT o.id, o.created_at, CASE WHEN $8 THEN o.size ELSE 0 END AS size, o.type, o.metadata, o.tenant FROM webhookd.outbox o
      WHERE NOT o.own AND %s AND ($7 IS NULL OR o.id %s $7) AND ($2 IS NULL OR o.created_at >= $2) AND ($3 IS NULL OR o.created_at < $3) ORDER BY o.id %s LIMIT 5000',
    CASE WHEN p_tenant = '' THEN 'true' ELSE 'o.tenant = $1 AND char_length(o.tenant) <= 255' END, CASE WHEN p_back THEN '>' ELSE '<' END, CASE WHEN p_back THEN 'ASC' ELSE 'DESC' END);
  wanted jsonb := jsonb_strip_nulls(jsonb_build_object(
    'channels', CASE WHEN p_channel IS NOT NULL THEN jsonb_build_array(p_channel) END, 'tags', CASE WHEN p_tag IS NOT NULL THEN jsonb_build_array(p_tag) END));
  sizes bigint[];
  fit int;
BEGIN
  EXECUTE format(
    'SELECT array_agg(f.id), array_agg(f.created_at), array_agg(f.sum) FROM (
       SELECT s.id, s.created_at, sum(s.size) OVER (ROWS UNBOUNDED PRECEDING) FROM (
         SELECT x.id, x.created_at, x.size FROM (%s) x
          WHERE x.tenant = $1 AND ($4 IS NULL OR x.type = ANY ($4)) AND ($5 = ''{}'' OR webhookd.passes($5, x.metadata)) LIMIT $6 + 1) s) f', looked_at)
    INTO ids, ats, sizes USING p_tenant, p_since, p_until, p_types, wanted, p_limit, p_after, p_content;
  fit := LEAST(p_limit, GREATEST(1, (SELECT count(*) FROM unnest(sizes) s WHERE s <= 8388608)));
  IF cardinality(ids) > fit THEN
    ids := ids[:fit];
    ats := ats[:fit];
    edge := ids[fit];
  ELSE
    EXECUTE format('SELECT x.id FROM (%s) x OFFSET 4999', looked_at) INTO edge USING p_tenant, p_since, p_until, p_types, wanted, p_limit, p_after, p_content;
  END IF;
END $$;

-- For the daemon's role, which may change no event: one of this tenant, by its id or by what its caller calls it, with what is owed of it.
CREATE FUNCTION webhookd.expunge(p_tenant text, p_name text, p_since timestamptz) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  gone bigint[];
  low timestamptz;
  named text;
BEGIN
  SELECT o.event_id INTO named
    FROM (SELECT p_name AS id UNION SELECT l.event_id FROM webhookd.event_alias l WHERE l.tenant = p_tenant AND l.alias = p_name) w
    JOIN webhookd.outbox o ON o.event_id = w.id
   WHERE o.tenant = p_tenant AND NOT o.own AND (p_since IS NULL OR o.created_at >= p_since) ORDER BY o.id DESC LIMIT 1;
  IF NOT FOUND THEN RETURN false; END IF;
  SELECT array_agg(o.id), min(o.created_at) INTO gone, low FROM webhookd.outbox o WHERE o.event_id = named AND o.tenant = p_tenant;
  INSERT INTO webhookd.audit (action, subject, tenant) VALUES ('erase', named, p_tenant);
  UPDATE webhookd.attempt a SET response = NULL WHERE a.outbox_id = ANY (gone) AND a.at >= low - interval '1 min' AND a.response IS NOT NULL;
  DELETE FROM webhookd.shot s WHERE s.outbox_id = ANY (gone);
  DELETE FROM webhookd.backlog b WHERE b.outbox_id = ANY (gone);
  DELETE FROM webhookd.unreadable u WHERE u.outbox_id = ANY (gone);
  DELETE FROM webhookd.scheduled z WHERE z.outbox_id = ANY (gone);
  DELETE FROM webhookd.event_alias l WHERE l.tenant = p_tenant AND l.event_id = named;
  DELETE FROM webhookd.outbox o WHERE o.id = ANY (gone) AND o.created_at >= low;
  RETURN true;
END $$;
REVOKE EXECUTE ON FUNCTION webhookd.message_page(text, timestamptz, timestamptz, text[], text, text, int, bigint, boolean, boolean),
  webhookd.expunge(text, text, timestamptz) FROM PUBLIC;
