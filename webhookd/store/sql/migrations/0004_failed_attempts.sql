-- `attempts --failed` over the whole log; an attempt that succeeds writes nothing to it.
CREATE INDEX attempt_failed ON webhookd.attempt (at) WHERE NOT ok;
