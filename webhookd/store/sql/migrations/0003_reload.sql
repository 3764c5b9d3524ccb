-- What a change of the configuration while daemons run needs.
ALTER TABLE webhookd.daemon
  ADD COLUMN config_at timestamptz NOT NULL DEFAULT now(),  -- the last time it read its files
  ADD COLUMN config_problem text;                           -- why it kept the old configuration then; NULL when it did not
ALTER TABLE webhookd.config_version ADD COLUMN reload bigint NOT NULL DEFAULT 0;  -- raised by `webhookd reload`; daemons look each second
CREATE TABLE webhookd.consent (                             -- removals that an operator has accepted, by tenant/name
  at timestamptz NOT NULL DEFAULT now(), removed text[] NOT NULL
);
