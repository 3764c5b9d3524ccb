"""The HTTP API, as docs/api.md has it: a table of operations, of which router, checks and OpenAPI are made."""
