-- What `python -m tests.bench --long reading` reads: 100 tenants, of which the first has a tenth more of a million events; 10,000 endpoints, of which two are hot;
-- ten attempts of each event, of which the last succeeds, but at the second hot one; statistics of a week.
INSERT INTO webhookd.tenant (id, key, uid, name)
SELECT 'app_' || lpad(n::text, 27, 'x'), 't' || n, 't' || n, 't' || n FROM generate_series(0, 99) n;
INSERT INTO webhookd.endpoint (tenant, name, source, spec)
SELECT 't' || n % 100, 'ep_' || n, 'api',
       jsonb_build_object('url', 'https://example.com/' || n, 'events', '["*"]'::jsonb, 'filter', '{}'::jsonb, 'description', '', 'active', true, 'signature', 'standard',
         'format', 'raw', 'headers', '[]'::jsonb, 'rate_limit', 0, 'timeout', NULL, 'retry', NULL, 'max_in_flight', NULL, 'disable_after', NULL)
  FROM generate_series(1, 10000) n;
INSERT INTO webhookd.outbox (event_id, type, payload, tenant, created_at)
SELECT 'e' || n, 'order.' || n % 50, '{"order": 42}', CASE WHEN n % 10 = 0 THEN 't0' ELSE 't' || n % 100 END, now() - interval '6 days' + n * interval '6 days' / 1000000
  FROM generate_series(1, 1000000) n;
INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok, code, ms)
SELECT o.created_at + a * interval '10 s', o.id, CASE WHEN o.tenant <> 't0' THEN 1 + o.id % 10000 WHEN dead THEN 200 ELSE 100 END, a, works,
       CASE WHEN works THEN 200 ELSE 500 END, 20
  FROM webhookd.outbox o CROSS JOIN generate_series(1, 10) a CROSS JOIN LATERAL (SELECT o.tenant = 't0' AND o.id % 20 <> 0) d(dead)
 CROSS JOIN LATERAL (SELECT a = 10 AND NOT dead) w(works);
INSERT INTO webhookd.statistic (slot, endpoint_id, at, delivered, failed, exhausted, rejected, took)
SELECT webhookd.statistic_slot(m), e, m, 5, 1, 0, 0, '{1,2,3}'
  FROM generate_series(date_trunc('minute', now() - interval '2 days'), now(), interval '1 min') m CROSS JOIN unnest(ARRAY[0, 100, 101, 102, 103, 104, 105, 106, 107, 108]) e;
INSERT INTO webhookd.statistic_hour
SELECT e, h, 300, 60, 0, 0, '{60,120,180,0,0,0,0,0,0,0,0,0}'
  FROM generate_series(date_trunc('hour', now() - interval '7 days'), now() - interval '2 days', interval '1 hour') h CROSS JOIN generate_series(0, 10000) e;
