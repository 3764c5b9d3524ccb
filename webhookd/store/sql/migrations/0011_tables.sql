-- What daemons write down besides: what is read and in no batch yet, what each has and whether it lives, and what answers and deaths leave behind.

-- What a tenant has committed beyond its share waits here in pages, in no batch yet. So the log is always read to its end, whoever fills it, and an event
-- of another tenant is found at once. Endpoints that are parked meanwhile read these events with their cursors, as all that is cut later.
CREATE SEQUENCE webhookd.surplus_id_seq;
CREATE TABLE webhookd.surplus (
  tenant text   NOT NULL,
  turn   bigint NOT NULL,                             -- the first page of each transaction, then the second of each: one that is large lets others pass
  id     bigint NOT NULL DEFAULT nextval('webhookd.surplus_id_seq'),
  page   int    NOT NULL,                             -- of its transaction, from 0
  ids    bigint[] NOT NULL,
  lo     timestamptz NOT NULL, hi timestamptz NOT NULL,  -- created_at range of the events
  PRIMARY KEY (tenant, turn, id)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE webhookd.remainder ADD COLUMN pages int NOT NULL DEFAULT 0;  -- of a transaction that is not read in one go, how many have been

-- Whose a scheduled event is, so that many that are due at once delay nobody else's. Those from before are of one tenant, whoever that was.
ALTER TABLE webhookd.scheduled ADD COLUMN tenant text NOT NULL DEFAULT '';
CREATE INDEX scheduled_tenant ON webhookd.scheduled (tenant, due);

ALTER TABLE webhookd.daemon
  ADD COLUMN problem text,                            -- what keeps it from some of its work; NULL when nothing does
  -- Which endpoints it has: so the others know what they share with it, and what no file names any longer. All of it is written when a daemon joins and
  -- when it reloads, never by a heartbeat: a long array lies in the TOAST table, where an UPDATE of the other columns leaves it alone.
  ADD COLUMN endpoint_ids int[],                      -- what it can send to, in their order; NULL: of a version that does not say
  ADD COLUMN inactive_ids int[],                      -- what its files name and it does not send to
  ADD COLUMN endpoints_hash text,                     -- of endpoint_ids
  ADD COLUMN counts boolean NOT NULL DEFAULT true,    -- it has a share of the limits: from its first heartbeat on
  -- The process that it is, so that others on its machine know when it is dead: they need not wait for beats that will not come.
  ADD COLUMN machine text,                            -- host, boot, and namespaces of pids and of time; NULL where that is not known
  ADD COLUMN pid     int,
  ADD COLUMN started bigint;                          -- ticks since the boot: a pid comes again

ALTER TABLE webhookd.backlog
  ADD COLUMN asked  smallint NOT NULL DEFAULT 0,      -- of its attempts those that only asked for less: they use up no step of the schedule
  ADD COLUMN owner  int,                              -- the daemon that has it leased; NULL from its next result on
  ADD COLUMN deaths smallint NOT NULL DEFAULT 0;      -- daemons that have died with it in hand, since its last result
ALTER TABLE webhookd.parked ADD COLUMN deaths smallint NOT NULL DEFAULT 0;  -- daemons that have died as its sender, since the cursor last moved
ALTER TABLE webhookd.endpoint ADD COLUMN revived_at timestamptz;  -- the end of the last time that it was disabled: no 410 before it counts any longer
