"""Rows: the only SQL of the project."""
