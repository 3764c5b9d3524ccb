"""webhookd delivers the events of a Postgres outbox to every endpoint that subscribes to them."""

__version__ = "0.1.0"
