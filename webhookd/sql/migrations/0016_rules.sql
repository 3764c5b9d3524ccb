-- What the owner of a database adds to it, such as rules and publications, and what older rows and replication leave behind, stops nobody.

-- What operators may subscribe to: an event of our own about an endpoint, which it is never owed itself. Where a constraint or a trigger of the owner does
-- not take it, it is lost with a warning: what it tells of has happened all the same, and is written in this very transaction.
CREATE OR REPLACE FUNCTION webhookd.tell(kind text, p int, about json DEFAULT '{}', event_id text DEFAULT gen_random_uuid()::text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET row_security = off SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC' SET standard_conforming_strings = on AS $$
BEGIN
  INSERT INTO webhookd.outbox (own, event_id, type, tenant, payload, metadata)
  SELECT true, tell.event_id, 'webhookd.' || tell.kind, CASE e.tenant WHEN '*' THEN '' ELSE e.tenant END,
         (json_build_object('endpoint', l.label, 'tenant', e.tenant, 'name', e.name)::jsonb || tell.about::jsonb)::json, json_build_object('endpoint', l.label)
    FROM webhookd.endpoint e CROSS JOIN LATERAL (SELECT CASE WHEN e.tenant = '' THEN e.name ELSE e.tenant || '/' || e.name END AS label) l
   WHERE e.id = tell.p;
EXCEPTION
  WHEN insufficient_privilege THEN RAISE;  -- of a right that a role lacks the daemon says so, and waits
  WHEN integrity_constraint_violation OR data_exception OR plpgsql_error OR syntax_error_or_access_rule_violation THEN
    RAISE WARNING 'webhookd.% about endpoint % is lost: %', tell.kind, tell.p, SQLERRM;
END $$;
