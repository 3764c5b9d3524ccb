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
ALTER TABLE webhookd.endpoint ADD COLUMN revived_at timestamptz;                  -- the end of the last time that it was disabled: no 410 before it counts any longer

-- As before; whoever has counted answers of 410 begins anew.
-- The end of a pause, and of being disabled: what came while an endpoint was disabled is not owed, and is a range in `missed`. Gives those that
-- were one or the other.
CREATE OR REPLACE FUNCTION webhookd.resume(ids int[]) RETURNS SETOF int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  last bigint;
BEGIN
  PERFORM pg_advisory_xact_lock(7301, 1);
  SELECT max(b.id) + 1 INTO last FROM webhookd.batch b;
  RETURN QUERY
  UPDATE webhookd.endpoint e SET paused_at = NULL, disabled_at = NULL, disabled_why = NULL,
         revived_at = CASE WHEN e.disabled_at IS NULL THEN e.revived_at ELSE clock_timestamp() END,
         resumed_at = CASE WHEN e.paused_at IS NULL THEN e.resumed_at ELSE now() END
   WHERE e.id = ANY (ids) AND (e.paused_at IS NOT NULL OR e.disabled_at IS NOT NULL) RETURNING e.id;
  DELETE FROM webhookd.parked p WHERE p.endpoint_id = ANY (ids) AND p.reason = 'disabled' AND p.from_batch = last;  -- nothing came
  WITH ended AS (
    UPDATE webhookd.parked p SET to_batch = last, next_batch = last
     WHERE p.endpoint_id = ANY (ids) AND p.reason = 'disabled' AND p.to_batch IS NULL RETURNING p.endpoint_id, p.from_batch)
  INSERT INTO webhookd.missed (endpoint_id, from_batch, to_batch, reason)
  SELECT d.endpoint_id, d.from_batch, last, 'disabled' FROM ended d WHERE d.from_batch < last ON CONFLICT DO NOTHING;
  UPDATE webhookd.config_version SET parked = parked + 1;
END $$;
