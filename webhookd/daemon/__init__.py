"""The composition root: builds an engine, reloads it, watches files, and speaks to systemd."""
