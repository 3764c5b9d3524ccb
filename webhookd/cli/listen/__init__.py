"""`webhookd listen`: a receiver on this machine, what it shows, and what it passes on."""
