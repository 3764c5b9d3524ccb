-- name: listens
-- Whoever finds us dead ends this connection, and who sees that it has the sleep lock knows that it is ours.
UPDATE webhookd.daemon SET listen_pid = pg_backend_pid() WHERE id = $1 AND stopped_at IS NULL;

-- name: take_sleep_lock
-- 'sleep': the sleep lock is ours, so producers notify. 'listen': another daemon sleeps, so they notify too. 'poll': a transaction
-- that inserted is open, and will not.
SELECT CASE WHEN pg_try_advisory_lock(7301, 2) THEN 'sleep'
            WHEN pg_try_advisory_xact_lock_shared(7301, 2) THEN 'poll'
            ELSE 'listen' END;

-- name: sleepers
-- Who has the sleep lock beside us, and is no daemon.
SELECT l.pid, a.usename, a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE (l.locktype, l.classid, l.objid, l.objsubid) = ('advisory', 7301, 2, 2) AND l.granted AND l.pid <> pg_backend_pid()
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.pid NOT IN (SELECT listen_pid FROM webhookd.daemon WHERE stopped_at IS NULL AND listen_pid IS NOT NULL)
 ORDER BY l.pid LIMIT 5;

-- name: processes
-- Whose they are, in this order.
SELECT u.pid, a.usename, a.application_name FROM unnest($1::int[]) WITH ORDINALITY u(pid, n) LEFT JOIN pg_stat_activity a ON a.pid = u.pid ORDER BY u.n;

-- name: rings
-- Does an INSERT ring at all?
SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhookd.outbox'::regclass AND tgname = 'wake' AND tgenabled IN ('O', 'A'));

-- name: ping
-- Is anybody there?
SELECT 1;

-- name: release_sleep_lock
-- Producers need not notify any longer.
SELECT pg_advisory_unlock(7301, 2);
