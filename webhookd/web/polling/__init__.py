"""Polling: endpoints whose events are fetched, by whom nobody can reach."""
