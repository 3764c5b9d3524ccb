-- name: cut
-- Newly committed and newly due events become batches that the caller owns, of each tenant its share, and a piece of the surplus. Where a moment is
-- such as a datetime cannot be, the range of a batch is open, here and wherever one is read.
SELECT batch_id, o_nonce, o_cut_at, o_ids, CASE WHEN o_lo < '0001-01-02 00:00:00+00' THEN '-infinity' ELSE LEAST(o_lo, '9999-12-30 00:00:00+00') END,
       CASE WHEN o_hi > '9999-12-30 00:00:00+00' THEN 'infinity' ELSE GREATEST(o_hi, '0001-01-02 00:00:00+00') END, o_claims, o_parked,
       webhookd.config_now(), o_more, o_after
  FROM webhookd.cut($1, $2, $3, p_rest => $4, p_read => $5, p_full => $6, p_busy => $7, p_after => $8);

-- name: heads
-- Everything of the events but payloads above $4 bytes, and metadata of rows that are older than its bound. The range prunes partitions.
SELECT id, event_id, created_at, type, tenant, ordering_key, CASE WHEN octet_length(metadata::text) <= 65536 THEN metadata END, occurred_at, size,
       CASE WHEN octet_length(metadata::text) > 65536 THEN octet_length(metadata::text) ELSE 0 END, CASE WHEN size <= $4 THEN payload END
  FROM webhookd.outbox WHERE id = ANY($1::bigint[]) AND created_at BETWEEN $2 AND $3;

-- name: metadata
-- What was left out of heads, or not kept.
SELECT id, metadata FROM webhookd.outbox WHERE id = ANY($1::bigint[]) AND created_at BETWEEN $2 AND $3 AND metadata IS NOT NULL;

-- name: payloads
-- The payloads of what starts now; one that is too large is never read.
SELECT id, CASE WHEN size <= $4 THEN payload END
  FROM webhookd.outbox WHERE id = ANY($1::bigint[]) AND created_at BETWEEN $2 AND $3;

-- name: contents
-- The same for who fetches them, with all of the metadata, and what they are called by who made them.
SELECT o.id, o.payload, o.metadata, o.deliver_after,
       (SELECT l.alias FROM webhookd.event_alias l WHERE l.event_id = o.event_id AND l.tenant = o.tenant LIMIT 1)
  FROM webhookd.outbox o WHERE o.id = ANY($1::bigint[]) AND o.created_at BETWEEN $2 AND $3 AND o.size <= $4;

-- name: set_aside
-- Events that cannot be read, and why: no delivery of them is owed any longer. Those that were not known.
WITH aside AS MATERIALIZED (SELECT u.id, u.why FROM unnest($1::bigint[], $2::text[]) u(id, why)),
owed AS MATERIALIZED (
  SELECT b.endpoint_id, b.outbox_id FROM aside CROSS JOIN LATERAL
    (SELECT w.endpoint_id, w.outbox_id FROM webhookd.backlog w WHERE w.outbox_id = aside.id AND w.state IN ('retry', 'held') OFFSET 0) b
   ORDER BY 1, 2),
ended AS (
  UPDATE webhookd.backlog w SET state = 'rejected', last_error = 'event_unreadable' FROM owed
   WHERE w.endpoint_id = owed.endpoint_id AND w.outbox_id = owed.outbox_id)
INSERT INTO webhookd.unreadable (outbox_id, why) SELECT id, why FROM aside ORDER BY id ON CONFLICT (outbox_id) DO NOTHING RETURNING outbox_id;

-- name: adopt
-- Batches that nobody handles: given back, ours by a reply that was lost, or of a daemon that stopped or is dead. By its beats we judge that only
-- while we are steady, until $4: after an outage every living daemon looks dead, and this very statement may have been held up in the network.
WITH orphan AS MATERIALIZED (
  SELECT b.id, b.owner FROM webhookd.batch b
   WHERE b.id > $1 AND b.done_at IS NULL
     AND (b.owner IS NULL
          OR b.owner = $2 AND b.id <> ALL($3::bigint[])
          OR b.owner <> $2 AND EXISTS (SELECT FROM webhookd.daemon d WHERE d.id = b.owner AND d.stopped_at IS NOT NULL)
          OR now() < to_timestamp($4::float8) AND b.owner <> $2 AND NOT EXISTS (
               SELECT FROM webhookd.daemon d
                WHERE d.id = b.owner AND d.stopped_at IS NULL AND d.beat_at > now() - $5 * interval '1 s'))
   ORDER BY b.id LIMIT $6 FOR UPDATE SKIP LOCKED)
UPDATE webhookd.batch b SET owner = $2, claims = LEAST(claims + 1, 32767)  -- beyond that the owner is fence enough
  FROM orphan WHERE b.id = orphan.id
RETURNING b.id, b.nonce, b.cut_at, b.outbox_ids,
       CASE WHEN b.lo < '0001-01-02 00:00:00+00' THEN '-infinity' ELSE LEAST(b.lo, '9999-12-30 00:00:00+00') END,
       CASE WHEN b.hi > '9999-12-30 00:00:00+00' THEN 'infinity' ELSE GREATEST(b.hi, '0001-01-02 00:00:00+00') END,
       b.claims, (SELECT v.parked FROM webhookd.config_version v), webhookd.config_now(), orphan.owner;

-- name: known
-- What of an adopted batch is settled already: delivered by the ledger, or owed by the backlog.
-- Row by row, because without statistics the planner would read whole tables.
SELECT s.outbox_id, s.endpoint_id FROM unnest($1::bigint[]) u(id) CROSS JOIN LATERAL
  (SELECT a.outbox_id, a.endpoint_id FROM webhookd.attempt a WHERE a.outbox_id = u.id AND a.ok AND a.at >= $2 OFFSET 0) s
UNION
SELECT s.outbox_id, s.endpoint_id FROM unnest($1::bigint[]) u(id) CROSS JOIN LATERAL
  (SELECT b.outbox_id, b.endpoint_id FROM webhookd.backlog b WHERE b.outbox_id = u.id OFFSET 0) s;

-- name: give_back
-- What a stopping daemon did not finish is free for the others at once.
UPDATE webhookd.batch SET owner = NULL WHERE id = ANY($2::bigint[]) AND owner = $1 AND done_at IS NULL;
