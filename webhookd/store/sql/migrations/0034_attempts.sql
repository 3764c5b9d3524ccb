-- Attempts and deliveries, as the HTTP API lists and forgets them.

-- A test is looked up as a message is.
CREATE INDEX shot_event_id ON webhookd.shot (event_id) WHERE event_id IS NOT NULL;

-- Which partition of the outbox has which numbers, so that events are looked for in those that they may be in. By the parent, on which everybody has rights who
-- has any. Where rows are in DEFAULT, nobody knows.
CREATE FUNCTION webhookd.id_ranges() RETURNS TABLE (since timestamptz, until timestamptz, low bigint, high bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  IF webhookd.rows_in_default() > 0 THEN
    RETURN QUERY SELECT '-infinity'::timestamptz, 'infinity'::timestamptz, 0::bigint, 9223372036854775807;
    RETURN;
  END IF;
  FOR since, until IN SELECT p.since, p.until FROM webhookd.partitions('outbox') p WHERE p.since <= now() + interval '1 day' LOOP
    EXECUTE format('SELECT min(id), max(id) FROM webhookd.outbox WHERE created_at >= %L AND created_at < %L', since, until) INTO low, high;
    IF low IS NOT NULL THEN RETURN NEXT; END IF;
  END LOOP;
END $$;

-- An attempt, while a page is put together.
CREATE TYPE webhookd.tried AS (at timestamptz, outbox_id bigint, endpoint_id int, attempt smallint, ok boolean, code smallint, ms int, error text, response bytea, trigger text);

-- A page of attempts: of an endpoint, or of events and perhaps of an endpoint; of the 5,000 behind a place those that fit, and one more where there are more.
-- Where nothing more was found but not all was looked at, the last row is only a place. Those whose event is gone are left out. It looks at pieces, and at the
-- partitions that the events of a piece are in.
CREATE FUNCTION webhookd.attempt_page(
  p_tenant text, p_since timestamptz, p_shared boolean, p_endpoint int, p_events bigint[], p_from timestamptz, p_until timestamptz, p_ok boolean, p_class int,
  p_types text[], p_channel text, p_tag text, p_limit int, p_at timestamptz, p_event bigint, p_of int, p_number int, p_back boolean, p_content boolean)
RETURNS TABLE (at timestamptz, outbox_id bigint, endpoint_id int, attempt smallint, event_id text, endpoint text, url text, ok boolean, code smallint, ms int, error text,
               response bytea, trigger text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
DECLARE
  looked_at text := format(
    'SELECT count(*), (array_agg(x.at))[count(*)], (array_agg(x.outbox_id))[count(*)], (array_agg(x.endpoint_id))[count(*)], (array_agg(x.attempt))[count(*)],
            array_agg(ROW (x.at, x.outbox_id, x.endpoint_id, x.attempt, x.ok, x.code, x.ms, x.error, CASE WHEN $11 THEN x.response END, x.trigger)::webhookd.tried)
              FILTER (WHERE ($9 IS NULL OR x.ok = $9) AND ($10 IS NULL OR CASE WHEN $10 = 0 THEN x.code IS NULL ELSE x.code >= $10 AND x.code < $10 + 100 END))
       FROM (SELECT t.* FROM webhookd.attempt t WHERE %s AND ($3 IS NULL OR t.at >= $3) AND t.at < COALESCE($4, now() + interval ''1 day'')
                AND ($5 IS NULL OR t.at %2$s= $5 AND (t.at, t.outbox_id, t.endpoint_id, t.attempt) %2$s ($5, $6, $7, $8))
              ORDER BY t.at %3$s, t.outbox_id %3$s, t.endpoint_id %3$s, t.attempt %3$s LIMIT $12) x',
    CASE WHEN p_events IS NULL THEN 't.endpoint_id = $1' ELSE 't.outbox_id = ANY ($2) AND ($1 IS NULL OR t.endpoint_id = $1)' END,
    CASE WHEN p_back THEN '>' ELSE '<' END, CASE WHEN p_back THEN 'ASC' ELSE 'DESC' END);
  wanted jsonb := jsonb_strip_nulls(jsonb_build_object(
    'channels', CASE WHEN p_channel IS NOT NULL THEN jsonb_build_array(p_channel) END, 'tags', CASE WHEN p_tag IS NOT NULL THEN jsonb_build_array(p_tag) END));
  rows webhookd.tried[];
  looked int := 0;
  found bigint := 0;
  piece int;
  seen bigint;
  count bigint;
  early timestamptz;
  late timestamptz;
BEGIN
  LOOP
    piece := LEAST(CASE WHEN looked = 0 THEN GREATEST(2 * p_limit, 100) ELSE 2500 END, 5000 - looked);
    EXECUTE looked_at INTO seen, p_at, p_event, p_of, p_number, rows
      USING p_endpoint, p_events, p_from, p_until, p_at, p_event, p_of, p_number, p_ok, p_class, p_content, piece;
    looked := looked + seen;
    IF rows IS NOT NULL THEN
      SELECT min(r.since), max(r.until) INTO early, late
        FROM webhookd.id_ranges() r JOIN (SELECT min(t.outbox_id) AS low, max(t.outbox_id) AS high FROM unnest(rows) t) o ON r.high >= o.low AND r.low <= o.high;
      RETURN QUERY
        SELECT t.at, t.outbox_id, t.endpoint_id, t.attempt, o.event_id, e.name, e.spec ->> 'url', t.ok, t.code, t.ms, t.error, t.response, t.trigger
          FROM unnest(rows) WITH ORDINALITY t(at, outbox_id, endpoint_id, attempt, ok, code, ms, error, response, trigger, n)
         CROSS JOIN LATERAL (
           SELECT i.event_id, i.type, i.metadata FROM webhookd.outbox i
            WHERE i.id = t.outbox_id AND i.created_at >= early AND i.created_at < late AND i.tenant = p_tenant AND NOT i.own AND (p_since IS NULL OR i.created_at >= p_since)
            LIMIT 1) o
          JOIN webhookd.endpoint e ON e.id = t.endpoint_id
         WHERE (p_shared OR e.tenant <> '*') AND (p_types IS NULL OR o.type = ANY (p_types)) AND (wanted = '{}' OR webhookd.passes(wanted, o.metadata))
         ORDER BY t.n LIMIT p_limit + 1 - found;
      GET DIAGNOSTICS count = ROW_COUNT;
      found := found + count;
    END IF;
    EXIT WHEN found > p_limit OR seen < piece;
    IF looked >= 5000 THEN
      RETURN QUERY SELECT p_at, p_event, p_of, p_number::smallint, NULL::text, NULL::text, NULL::text, NULL::boolean, NULL::smallint, NULL::int, NULL::text, NULL::bytea, NULL::text;
      EXIT;
    END IF;
  END LOOP;
END $$;

-- A page of a tenant's events that an endpoint was owed, with what became of each there: of the 2,000 behind a number those that fit, and one more where there
-- are more. Where nothing more was found but not all was looked at, the last row is only a number.
CREATE FUNCTION webhookd.delivery_page(
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
  looked int := 0;
  found bigint := 0;
  piece int;
  seen bigint;
  count bigint;
  early timestamptz;
  late timestamptz;
BEGIN
  LOOP
    piece := LEAST(CASE WHEN looked = 0 THEN GREATEST(2 * p_limit, 100) ELSE 1000 END, 2000 - looked);
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
    IF looked >= 2000 THEN
      RETURN QUERY SELECT p_after, NULL::timestamptz, NULL::int, NULL::text, NULL::text, NULL::json, NULL::timestamptz, NULL::text, NULL::text, NULL::text, NULL::timestamptz;
      EXIT;
    END IF;
  END LOOP;
END $$;

-- For the daemon's role, which may change no attempt: forget what was answered to one, of this event of the tenant.
CREATE FUNCTION webhookd.expunge_attempt(p_tenant text, p_since timestamptz, p_event_id text, p_at timestamptz, p_event bigint, p_endpoint int, p_number int) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM webhookd.outbox o WHERE o.id = p_event AND o.event_id = p_event_id AND o.tenant = p_tenant AND NOT o.own AND (p_since IS NULL OR o.created_at >= p_since)) THEN
    RETURN false;
  END IF;
  UPDATE webhookd.attempt a SET response = NULL WHERE a.at = p_at AND a.outbox_id = p_event AND a.endpoint_id = p_endpoint AND a.attempt = p_number;
  IF NOT FOUND THEN RETURN false; END IF;
  INSERT INTO webhookd.audit (action, subject, tenant, after)
  SELECT 'erase attempt', p_event_id, p_tenant, json_build_object('endpoint', concat_ws('/', NULLIF(e.tenant, ''), e.name), 'attempt', p_number) FROM webhookd.endpoint e WHERE e.id = p_endpoint;
  RETURN true;
END $$;
REVOKE EXECUTE ON FUNCTION webhookd.id_ranges(),
  webhookd.attempt_page(text, timestamptz, boolean, int, bigint[], timestamptz, timestamptz, boolean, int, text[], text, text, int, timestamptz, bigint, int, int, boolean, boolean),
  webhookd.delivery_page(text, timestamptz, timestamptz, text[], text, text, int, text[], int, bigint, boolean),
  webhookd.expunge_attempt(text, timestamptz, text, timestamptz, bigint, int, int) FROM PUBLIC;
