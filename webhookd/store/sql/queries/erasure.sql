-- name: erase_aliases
-- What callers of the API have called these events.
DELETE FROM webhookd.event_alias l USING (
  SELECT a.tenant, a.alias FROM webhookd.event_alias a WHERE a.tenant = $1 OR a.event_id = $2 ORDER BY a.tenant, a.alias LIMIT 10000 FOR UPDATE) gone
 WHERE l.tenant = gone.tenant AND l.alias = gone.alias RETURNING 1;

-- name: erase
-- What the events say is gone, of so many of them; where to go on.
SELECT e.next, e.events, e.deliveries, e.responses
  FROM (SELECT set_config('webhookd.who', $5, true) OFFSET 0) w CROSS JOIN LATERAL webhookd.erase($1, $2, $3, $4 AND w.set_config IS NOT NULL) e;
