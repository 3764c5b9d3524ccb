"""Where events come in: the log is cut into batches, and each event fanned out to whom it is owed."""
