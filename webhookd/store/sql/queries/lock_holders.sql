-- name: lock_holders
-- Who has a lock that our work needs: of the tables that stand for locks whoever has one, of all else whom statements of ours have waited for, for a
-- second. Another transaction is another keeper. Since when: its own moment, where we may see that.
WITH here AS MATERIALIZED (SELECT l.* FROM pg_locks l),
needed(lock, id) AS (VALUES ('lock_log', 'webhookd.lock_log'::regclass::oid), ('lock_tables', 'webhookd.lock_tables'::regclass),
                            ('lock_endpoints', 'webhookd.lock_endpoints'::regclass)),
ours AS (SELECT a.pid FROM pg_stat_activity a WHERE (a.datname, a.usename, a.application_name) = (current_database(), current_user, 'webhookd')),
kept AS (
  SELECT n.lock, l.pid, l.virtualtransaction AS transaction FROM needed n JOIN here l ON l.locktype = 'relation' AND l.relation = n.id
   WHERE l.granted AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
     AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
  UNION
  SELECT 'other', NULLIF(b.pid, 0), '' FROM here w JOIN ours ON ours.pid = w.pid CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) b(pid)
   WHERE NOT w.granted AND w.waitstart < clock_timestamp() - interval '1 s' AND NOT EXISTS (SELECT FROM needed n WHERE n.id = w.relation))
SELECT k.lock, k.pid, k.transaction, a.usename, a.application_name, COALESCE(a.xact_start, now()) AS since
  FROM kept k LEFT JOIN pg_stat_activity a ON a.pid = k.pid ORDER BY 1, 2 LIMIT 5;
