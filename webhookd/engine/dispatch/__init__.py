"""Where deliveries wait and start: a queue per endpoint, fair turns, limits, and what follows from an answer."""
