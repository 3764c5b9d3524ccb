-- name: statistics_add
-- What was seen of endpoints in minutes that are over. The last are twelve counts for each row, in one array.
INSERT INTO webhookd.statistic (slot, endpoint_id, at, delivered, failed, exhausted, rejected, took)
SELECT webhookd.statistic_slot(to_timestamp(u.minute * 60)), u.p, to_timestamp(u.minute * 60), u.d, u.f, u.e, u.r,
       trim_array(t.took, 12 - COALESCE((SELECT max(i) FROM generate_series(1, 12) i WHERE t.took[i] > 0), 0))
  FROM unnest($1::int[], $2::int8[], $3::int[], $4::int[], $5::int[], $6::int[]) WITH ORDINALITY u(p, minute, d, f, e, r, n)
 CROSS JOIN LATERAL (SELECT ($7::int[])[12 * (u.n - 1) + 1:12 * u.n] AS took) t ORDER BY u.p, u.minute;

-- name: statistics_sum_up
-- Hours of minutes that are older than two days; and old hours go.
SELECT webhookd.sum_up($1 * interval '1 s');

-- name: statistics
-- Of an endpoint in a span, and what it is owed now, as far as 10,000 rows of the backlog tell.
SELECT s.delivered, s.failed, s.exhausted, s.rejected, s.took,
       o.waiting, o.retrying, o.discarded, COALESCE((SELECT c.parked FROM webhookd.count_aside(2000, $1) c LIMIT 1), 0)
  FROM webhookd.statistics($1, $2, $3) s CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE b.state IN ('retry', 'held') AND b.attempts = 0 AND b.last_error IS NULL) AS waiting,
           count(*) FILTER (WHERE b.state IN ('retry', 'held') AND (b.attempts > 0 OR b.last_error IS NOT NULL)) AS retrying,
           count(*) FILTER (WHERE b.state = 'rejected' AND b.last_error = 'discarded' AND b.due >= $2 AND b.due < $3) AS discarded
      FROM (SELECT * FROM webhookd.backlog w WHERE w.endpoint_id = $1 LIMIT 10000) b) o;
