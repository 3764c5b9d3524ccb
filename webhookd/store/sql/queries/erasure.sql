-- name: erase
-- What the events say is gone, of so many of them; where to go on.
SELECT next, events, deliveries, responses FROM webhookd.erase($1, $2, $3, $4);
