"""Fixtures of the registry's tests."""

from tests.registry_fixtures import clock, database, database_url, jobs, registry

__all__ = ["clock", "database", "database_url", "jobs", "registry"]
