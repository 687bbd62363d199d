"""Adapters in, one adapter out: no SQL, no HTTP, no files."""
