"""Endpoints whose events are fetched: what they are owed, and who waits for it."""
