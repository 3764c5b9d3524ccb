"""Endpoints that fail, lag or are paused: each reads the log with a cursor, and costs no row per event."""
