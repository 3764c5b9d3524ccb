"""Messages: what the API calls an event."""
