-- name: backlog_delete
-- An exception succeeded.
DELETE FROM webhookd.backlog d USING unnest($1::int[], $2::bigint[]) u(endpoint_id, outbox_id)
 WHERE d.endpoint_id = u.endpoint_id AND d.outbox_id = u.outbox_id;

-- name: backlog_insert
-- A first failure, a spill, a straggler's lease, what is held behind another, or an end that was not a delivery. Not of what a resend has delivered meanwhile.
INSERT INTO webhookd.backlog
       (endpoint_id, outbox_id, outbox_at, attempts, due, state, last_code, last_error, ordering_key, clock_from, asked, owner)
SELECT u.p, u.o, u.at, u.a, CASE u.d WHEN 'infinity' THEN 'infinity' ELSE now() + u.d * interval '1 s' END, u.s, u.c, u.x, u.k, to_timestamp(u.f), u.q, u.w
  FROM unnest($1::int[], $2::bigint[], $3::timestamptz[], $4::smallint[], $5::float8[], $6::text[], $7::smallint[], $8::text[],
              $9::text[], $10::float8[], $11::smallint[], $12::int[]) u(p, o, at, a, d, s, c, x, k, f, q, w)
 WHERE NOT EXISTS (SELECT FROM webhookd.shot t WHERE t.outbox_id = u.o AND t.endpoint_id = u.p AND t.ok OFFSET 0)
 ORDER BY u.p, u.o
ON CONFLICT DO NOTHING;

-- name: backlog_update
-- A further failure, or no attempt at all (then `made` is 0); fenced by the number of attempts the writer knew of,
-- and the replay, which begins them anew. The time of what was held begins with its first attempt.
UPDATE webhookd.backlog d
   SET attempts = u.a + u.made, asked = u.q, owner = NULL, deaths = u.w, state = u.s,
       due = CASE u.d WHEN 'infinity' THEN 'infinity' ELSE now() + u.d * interval '1 s' END,
       clock_from = CASE WHEN d.state = 'held' AND d.attempts = 0 THEN now() ELSE d.clock_from END,
       last_code = CASE WHEN u.made > 0 THEN u.c ELSE d.last_code END, last_error = COALESCE(u.x, d.last_error)
  FROM unnest($1::int[], $2::bigint[], $3::smallint[], $4::smallint[], $5::float8[], $6::text[], $7::smallint[], $8::text[],
              $9::smallint[], $10::smallint[], $11::bigint[]) u(p, o, a, made, d, s, c, x, q, w, r)
 WHERE d.endpoint_id = u.p AND d.outbox_id = u.o AND d.attempts = u.a AND COALESCE(d.replay, 0) = u.r AND d.state IN ('retry', 'held');

-- name: batch_done
-- Fenced by nonce, owner and claims: a late end closes nobody else's batch.
UPDATE webhookd.batch b SET done_at = now()
  FROM unnest($1::bigint[], $2::bigint[], $3::smallint[]) u(id, nonce, claims)
 WHERE b.id = u.id AND b.nonce = u.nonce AND b.claims = u.claims AND b.owner = $4 AND b.done_at IS NULL;

-- name: xact_id
-- Who we are inside a flush, so that a lost reply to COMMIT can be asked for.
SELECT pg_current_xact_id()::text;

-- name: xact_status
-- What became of a flush whose reply was lost.
SELECT pg_xact_status($1::text::xid8);

-- name: cursors
-- All before is settled; fenced by owner and epoch, and never backward, as retention may have moved it on.
UPDATE webhookd.parked p SET next_batch = u.batch, next_pos = u.pos, deaths = 0
  FROM unnest($1::int[], $2::bigint[], $3::int[], $4::bigint[], $5::int[]) u(endpoint_id, from_batch, epoch, batch, pos)
 WHERE p.endpoint_id = u.endpoint_id AND p.from_batch = u.from_batch AND p.owner = $6 AND p.epoch = u.epoch
   AND (p.next_batch, p.next_pos) < (u.batch, u.pos);

-- name: tell_exhausted
-- An event of our own for each delivery that ended without success; its id is the same if it is told twice.
SELECT webhookd.tell('delivery.exhausted', u.p, json_build_object('event_id', u.event_id, 'type', u.type, 'attempts', u.attempts, 'error', u.error),
                     'exhausted-' || u.p || '-' || u.o)
  FROM unnest($1::int[], $2::bigint[], $3::text[], $4::text[], $5::int[], $6::text[]) u(p, o, event_id, type, attempts, error);
