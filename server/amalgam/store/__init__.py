"""Adapter files: the only code that touches the store."""
