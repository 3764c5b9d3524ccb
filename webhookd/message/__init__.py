"""What goes over the wire, pure: formats, signatures, the request, and the secrets that sign it."""
