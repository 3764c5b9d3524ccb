-- A message of the API in one statement: whose it is, that it was not answered before, the event, and what is answered if it comes again. NULL when
-- nothing was done, for whatever reason; done step by step, it says which. To be called by whoever has the lock of the request.
CREATE FUNCTION webhookd.add_message(
  p_application text, p_of text, p_request bytea, p_body bytea,
  p_event_id text, p_type text, p_payload json, p_metadata json, p_ordering_key text, p_deliver_after timestamptz, p_alias text) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  p_tenant text;
  p_since timestamptz;
  added timestamptz;
BEGIN
  IF p_request IS NOT NULL AND EXISTS (SELECT FROM webhookd.request r WHERE r.key = p_request AND r.at > now() - interval '12 hours') THEN RETURN NULL; END IF;
  SELECT t.key, t.since INTO p_tenant, p_since FROM webhookd.tenant t
   WHERE (t.id = p_application OR t.uid = p_application) AND t.deleted_at IS NULL AND (p_of IS NULL OR t.id = p_of) ORDER BY t.id = p_application DESC LIMIT 1;
  IF NOT FOUND THEN RETURN NULL; END IF;
  IF p_alias IS NOT NULL THEN
    INSERT INTO webhookd.event_alias AS l (tenant, alias, event_id) VALUES (p_tenant, p_alias, p_event_id)
    ON CONFLICT (tenant, alias) DO UPDATE SET event_id = EXCLUDED.event_id, at = EXCLUDED.at WHERE l.at < p_since;
    IF NOT FOUND THEN RETURN NULL; END IF;
  END IF;
  INSERT INTO webhookd.outbox AS o (event_id, type, payload, tenant, metadata, ordering_key, deliver_after)
  VALUES (p_event_id, p_type, p_payload, p_tenant, p_metadata, p_ordering_key, p_deliver_after) RETURNING o.created_at INTO added;
  IF p_request IS NOT NULL THEN
    INSERT INTO webhookd.request AS r (slot, key, body, status, made) VALUES (webhookd.request_slot(now()), p_request, p_body, 202, p_event_id)
    ON CONFLICT (slot, key) DO UPDATE SET body = EXCLUDED.body, status = EXCLUDED.status, made = EXCLUDED.made, at = EXCLUDED.at;
  END IF;
  RETURN added;
END $$;
REVOKE EXECUTE ON FUNCTION webhookd.add_message(text, text, bytea, bytea, text, text, json, json, text, timestamptz, text) FROM PUBLIC;
