"""The way out: which addresses may be dialled, their names, connections and TLS, and the only HTTP client."""
