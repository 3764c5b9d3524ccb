-- A page of a tenant's events that an endpoint was owed, with what became of each there: of the 2,000 behind a number, or 500 where attempts have to
-- tell which were delivered, those that fit, and one more where there are more. Where nothing more was found but not all was looked at, the last row is only a number.
CREATE OR REPLACE FUNCTION webhookd.delivery_page(
  p_tenant text, p_since timestamptz, p_until timestamptz, p_types text[], p_channel text, p_tag text, p_endpoint int, p_states text[], p_limit int, p_after bigint, p_back boolean)
RETURNS TABLE (id bigint, created_at timestamptz, size int, event_id text, type text, metadata json, deliver_after timestamptz, alias text, state text, reason text, due timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  looked_at text := format(
    'SELECT count(*), (array_agg(x.id))[count(*)], array_agg(x.id) FILTER (WHERE x.fits), min(x.created_at), max(x.created_at) FROM (
       SELECT o.id, o.created_at, o.tenant = $1 AND NOT o.own AND ($6 IS NULL OR o.type = ANY ($6)) AND ($7 = ''{}'' OR webhookd.passes($7, o.metadata)) AS fits
         FROM webhookd.outbox o
        WHERE %s AND ($2 IS NULL OR o.id %s $2) AND ($3 IS NULL OR o.created_at >= $3) AND ($4 IS NULL OR o.created_at < $4) ORDER BY o.id %s LIMIT $5) x',
    CASE WHEN p_tenant = '' THEN 'true' ELSE 'o.tenant = $1 AND char_length(o.tenant) <= 255' END, CASE WHEN p_back THEN '>' ELSE '<' END, CASE WHEN p_back THEN 'ASC' ELSE 'DESC' END);
  wanted jsonb := jsonb_strip_nulls(jsonb_build_object(
    'channels', CASE WHEN p_channel IS NOT NULL THEN jsonb_build_array(p_channel) END, 'tags', CASE WHEN p_tag IS NOT NULL THEN jsonb_build_array(p_tag) END));
  ids bigint[];
  most int := CASE WHEN 'delivered' = ANY (p_states) THEN 500 ELSE 2000 END;
  looked int := 0;
  found bigint := 0;
  piece int;
  seen bigint;
  count bigint;
  early timestamptz;
  late timestamptz;
BEGIN
  LOOP
    piece := LEAST(CASE WHEN looked = 0 THEN GREATEST(2 * p_limit, 100) ELSE 1000 END, most - looked);
    EXECUTE looked_at INTO seen, p_after, ids, early, late USING p_tenant, p_after, p_since, p_until, piece, p_types, wanted;
    looked := looked + seen;
    IF ids IS NOT NULL AND NOT 'delivered' = ANY (p_states) THEN  -- which alone follows from attempts, of which there may be many
      ids := ARRAY(SELECT u.id FROM unnest(ids) WITH ORDINALITY u(id, n)
                    WHERE EXISTS (SELECT FROM webhookd.backlog w WHERE w.endpoint_id = p_endpoint AND w.outbox_id = u.id)
                       OR u.id IN (SELECT s.outbox_id FROM webhookd.aside(ids, early, late, p_endpoint) s) ORDER BY u.n);
    END IF;
    IF cardinality(ids) > 0 THEN
      RETURN QUERY
        SELECT * FROM (
          SELECT o.id, o.created_at, o.size, o.event_id, o.type, o.metadata, o.deliver_after,
                 (SELECT l.alias FROM webhookd.event_alias l WHERE l.event_id = o.event_id AND l.tenant = p_tenant LIMIT 1),
                 CASE WHEN b.state = 'retry' AND b.attempts = 0 AND b.last_error IS NULL THEN 'waiting' WHEN b.state = 'retry' THEN 'retrying'
                      WHEN b.state = 'rejected' AND b.last_error = 'discarded' THEN 'discarded' WHEN b.state IS NOT NULL THEN b.state
                      WHEN t.ok THEN 'delivered' WHEN t.ok IS NOT NULL THEN 'retrying' WHEN s.state = 'rejected' THEN 'discarded' ELSE s.state END AS what,
                 CASE WHEN b.state IS NOT NULL THEN b.last_error WHEN t.ok IS NULL THEN s.reason END, CASE WHEN b.state = 'retry' THEN b.due END
            FROM unnest(ids) WITH ORDINALITY u(id, n)
            LEFT JOIN LATERAL (SELECT w.* FROM webhookd.backlog w WHERE w.endpoint_id = p_endpoint AND w.outbox_id = u.id OFFSET 0) b ON true
            LEFT JOIN (
              SELECT a.outbox_id, bool_or(a.ok) AS ok FROM webhookd.attempt a
               WHERE a.outbox_id = ANY (ids) AND a.endpoint_id = p_endpoint AND a.at >= early - interval '1 min' AND a.at < now() + interval '1 day'
                 AND (a.ok OR a.trigger IS DISTINCT FROM 'resend') GROUP BY a.outbox_id) t ON t.outbox_id = u.id
            LEFT JOIN webhookd.aside(ids, early, late, p_endpoint) s ON s.outbox_id = u.id
           CROSS JOIN LATERAL (SELECT i.* FROM webhookd.outbox i WHERE i.id = u.id AND i.created_at >= early AND i.created_at <= late LIMIT 1) o
           WHERE b.state IS NOT NULL OR t.ok IS NOT NULL OR s.state IS NOT NULL ORDER BY u.n) d
         WHERE p_states IS NULL OR d.what = ANY (p_states) LIMIT p_limit + 1 - found;
      GET DIAGNOSTICS count = ROW_COUNT;
      found := found + count;
    END IF;
    EXIT WHEN found > p_limit OR seen < piece;
    IF looked >= most THEN
      RETURN QUERY SELECT p_after, NULL::timestamptz, NULL::int, NULL::text, NULL::text, NULL::json, NULL::timestamptz, NULL::text, NULL::text, NULL::text, NULL::timestamptz;
      EXIT;
    END IF;
  END LOOP;
END $$;
