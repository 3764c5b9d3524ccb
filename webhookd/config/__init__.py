"""Files and environment in; a Config out, or every mistake at once. Only the loader touches the disk."""
