-- Endpoints that the API makes stand beside those of files. `name` is the id that the API gives, for ever.
ALTER TABLE webhookd.endpoint
  ADD COLUMN uid        text,                                -- the caller's own name for it
  ADD COLUMN metadata   json        NOT NULL DEFAULT '{}',
  ADD COLUMN created_at timestamptz NOT NULL DEFAULT now(),
  ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now();
CREATE UNIQUE INDEX endpoint_uid ON webhookd.endpoint (tenant, uid) WHERE removed_at IS NULL;

-- What of them is secret beside what they sign with: the URL where it has a query, and the values of headers. Sealed as secrets are, each for its name.
CREATE TABLE webhookd.sealed (
  endpoint_id int   NOT NULL REFERENCES webhookd.endpoint ON DELETE CASCADE,
  name        text  NOT NULL,                                -- url | header NAME
  key_id      text  NOT NULL,
  content     bytea NOT NULL,
  PRIMARY KEY (endpoint_id, name)
);
