-- What answers, and processes that died, leave behind.
ALTER TABLE webhookd.backlog
  ADD COLUMN asked  smallint NOT NULL DEFAULT 0,                                  -- of its attempts those that only asked for less: they use up no step of the schedule
  ADD COLUMN owner  int,                                                          -- the daemon that has it leased; NULL from its next result on
  ADD COLUMN deaths smallint NOT NULL DEFAULT 0;                                  -- daemons that have died with it in hand, since its last result
