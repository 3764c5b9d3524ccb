-- What answers, and processes that died, leave behind.
ALTER TABLE webhookd.backlog
  ADD COLUMN asked  smallint NOT NULL DEFAULT 0,                                  -- of its attempts those that only asked for less: they use up no step of the schedule
  ADD COLUMN owner  int,                                                          -- the daemon that has it leased; NULL from its next result on
  ADD COLUMN deaths smallint NOT NULL DEFAULT 0;                                  -- daemons that have died with it in hand, since its last result
-- The process that is the daemon, so that others on its machine know when it is dead: they need not wait for beats that will not come.
ALTER TABLE webhookd.daemon
  ADD COLUMN machine text,                                                        -- host, boot, and namespaces of pids and of time; NULL where that is not known
  ADD COLUMN pid     int,
  ADD COLUMN started bigint;                                                      -- ticks since the boot: a pid comes again
