-- Secrets of endpoints that no file has. Each is sealed with a key that is not in the database; `key_id` says which. In a dump they say nothing.
CREATE TABLE webhookd.secret (
  endpoint_id int         NOT NULL REFERENCES webhookd.endpoint ON DELETE CASCADE,
  number      smallint    NOT NULL,                                               -- the newest is the largest
  key_id      text        NOT NULL,
  sealed      bytea       NOT NULL,
  until       timestamptz,                                                        -- from then on it signs nothing
  created_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (endpoint_id, number)
);
