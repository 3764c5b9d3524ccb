-- Roles of the least privilege. A template: create the roles, change their names if you like, and run it as the owner of the
-- schema, again after each `webhookd migrate`. The owner is the role that ran `webhookd migrate`; nothing else needs its rights.
--
--   CREATE ROLE webhookd_daemon LOGIN;  CREATE ROLE webhookd_producer;  CREATE ROLE webhookd_reader;
GRANT USAGE ON SCHEMA webhookd TO webhookd_daemon, webhookd_producer, webhookd_reader;

-- Applications, for `GRANT webhookd_producer TO my_app`. SELECT on what RETURNING asks for in Django, SQLAlchemy and Rails, no more.
GRANT INSERT (type, payload, tenant, ordering_key, metadata, event_id, occurred_at, deliver_after),
      SELECT (id, event_id, created_at) ON webhookd.outbox TO webhookd_producer;
GRANT USAGE ON SEQUENCE webhookd.outbox_id_seq TO webhookd_producer;
GRANT EXECUTE ON FUNCTION webhookd.emit(text, json, text, text, json, text, timestamptz, timestamptz) TO webhookd_producer;

-- People and dashboards: everything but what applications say, which is payload and metadata, and what is sealed. First what earlier versions of this
-- file gave is taken back: a right to a table is one to all its columns, and a partition has rights of its own.
REVOKE SELECT ON ALL TABLES IN SCHEMA webhookd FROM webhookd_reader;
GRANT SELECT (id, created_at, xid, event_id, type, tenant, ordering_key, occurred_at, deliver_after, size, own) ON webhookd.outbox TO webhookd_reader;
GRANT SELECT (id, kind, endpoint_id, outbox_id, outbox_at, event_id, type, tenant, by, created_at, start_by, owner, ends_at, done_at, ok, at, code, ms, error)
      ON webhookd.shot TO webhookd_reader;
GRANT SELECT (id, role, tenant, capabilities, feature_flags, name, by, created_at, expires_at, revoked_at, used_at, endpoint_id) ON webhookd.token TO webhookd_reader;
GRANT SELECT ON webhookd.schema_version, webhookd.audit, webhookd.discard, webhookd.batch, webhookd.remainder, webhookd.surplus, webhookd.scheduled, webhookd.backlog, webhookd.attempt,
      webhookd.binding, webhookd.endpoint, webhookd.config_version, webhookd.consent, webhookd.parked, webhookd.missed, webhookd.consumer, webhookd.replay, webhookd.daemon,
      webhookd.downtime, webhookd.unreadable, webhookd.tenant, webhookd.event_type, webhookd.event_alias, webhookd.request, webhookd.statistic, webhookd.statistic_hour, webhookd.statistic_summed, webhookd.health, webhookd.lock_log, webhookd.lock_tables, webhookd.lock_endpoints TO webhookd_reader;
GRANT EXECUTE ON FUNCTION webhookd.event_status(text), webhookd.aside(bigint[], timestamptz, timestamptz, int), webhookd.count_aside(int, int),
      webhookd.passes(jsonb, json), webhookd.place() TO webhookd_reader;

-- `webhookd run`. Events, attempts and what people did are facts, which it cannot change; partitions go through functions of the owner.
GRANT SELECT ON ALL TABLES IN SCHEMA webhookd TO webhookd_daemon;
GRANT INSERT ON webhookd.outbox, webhookd.attempt, webhookd.audit, webhookd.statistic TO webhookd_daemon;
GRANT INSERT, UPDATE, DELETE ON webhookd.batch, webhookd.remainder, webhookd.surplus, webhookd.scheduled, webhookd.backlog, webhookd.binding, webhookd.endpoint,
      webhookd.parked, webhookd.missed, webhookd.consumer, webhookd.replay, webhookd.daemon, webhookd.downtime, webhookd.secret, webhookd.sealed, webhookd.unreadable
      TO webhookd_daemon;
GRANT INSERT, UPDATE ON webhookd.shot, webhookd.discard, webhookd.tenant, webhookd.token, webhookd.request, webhookd.event_alias TO webhookd_daemon;
GRANT INSERT, UPDATE, DELETE ON webhookd.event_type TO webhookd_daemon;
GRANT INSERT, DELETE ON webhookd.consent TO webhookd_daemon;
GRANT UPDATE ON webhookd.config_version, webhookd.lock_log, webhookd.lock_endpoints TO webhookd_daemon;  -- the last two are locked, never written
GRANT USAGE ON ALL SEQUENCES IN SCHEMA webhookd TO webhookd_daemon;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA webhookd TO webhookd_daemon;
REVOKE EXECUTE ON FUNCTION webhookd.erase(text, text, bigint, boolean), webhookd.rebase(text, text) FROM webhookd_daemon;
