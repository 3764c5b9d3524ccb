"""The only part that speaks to Postgres: rows to values, and its errors translated."""
