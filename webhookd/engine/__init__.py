"""The running parts: from the log to attempts, from answers to results. They know no database, file or socket."""
