-- Which endpoints each daemon has: so the others know what they share with it, and what no file names any longer.
-- All of it is written when a daemon joins and when it reloads, never by a heartbeat: a long array lies in the TOAST
-- table, where an UPDATE of the other columns leaves it alone.
ALTER TABLE webhookd.daemon
  ADD COLUMN endpoint_ids int[],                      -- what it can send to, in their order; NULL: of a version that does not say
  ADD COLUMN inactive_ids int[],                      -- what its files name and it does not send to
  ADD COLUMN endpoints_hash text,                     -- of endpoint_ids
  ADD COLUMN counts boolean NOT NULL DEFAULT true;    -- it has a share of the limits: from its first heartbeat on
