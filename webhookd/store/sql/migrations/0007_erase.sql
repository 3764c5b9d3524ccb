-- Erase what events say: payload, metadata, what receivers answered, and what is owed. That attempts were made stays. Of a tenant 10,000 events of the
-- log at a time, after the number `after`; gives the number to go on after, or NULL at the end. For the owner alone.
CREATE FUNCTION webhookd.erase(tenant text DEFAULT NULL, event_id text DEFAULT NULL, after bigint DEFAULT 0, dry_run boolean DEFAULT false,
                               OUT next bigint, OUT events bigint, OUT deliveries bigint, OUT responses bigint)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  ids bigint[];
  low timestamptz;
BEGIN
  IF (tenant IS NULL) = (event_id IS NULL) THEN RAISE EXCEPTION 'give either a tenant or an event_id'; END IF;
  IF event_id IS NULL THEN
    SELECT max(w.id), array_agg(w.id) FILTER (WHERE w.tenant = erase.tenant), min(w.created_at) INTO next, ids, low
      FROM (SELECT o.id, o.tenant, o.created_at FROM webhookd.outbox o WHERE o.id > after ORDER BY o.id LIMIT 10000) w;
  ELSE
    SELECT array_agg(o.id), min(o.created_at) INTO ids, low FROM webhookd.outbox o WHERE o.event_id = erase.event_id;
  END IF;
  events := COALESCE(cardinality(ids), 0);
  SELECT count(*) INTO deliveries FROM webhookd.backlog b WHERE b.outbox_id = ANY (ids);
  SELECT count(*) INTO responses FROM webhookd.attempt a
   WHERE a.outbox_id = ANY (ids) AND a.at >= low - interval '1 min' AND a.response IS NOT NULL;
  IF dry_run OR events = 0 THEN RETURN; END IF;
  UPDATE webhookd.attempt a SET response = NULL
   WHERE a.outbox_id = ANY (ids) AND a.at >= low - interval '1 min' AND a.response IS NOT NULL;
  DELETE FROM webhookd.backlog b WHERE b.outbox_id = ANY (ids);
  DELETE FROM webhookd.scheduled z WHERE z.outbox_id = ANY (ids);
  DELETE FROM webhookd.outbox o WHERE o.id = ANY (ids) AND o.created_at >= low;
END $$;
REVOKE EXECUTE ON FUNCTION webhookd.erase(text, text, bigint, boolean) FROM PUBLIC;
