"""Builds every serving object once, a class for each subsystem, and closes them in reverse."""
