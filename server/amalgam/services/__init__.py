"""One use case a file; no HTTP, no SQL, no torch."""
