"""`webhookd demo`: everything at once on this machine, and books that are held against what was received."""
