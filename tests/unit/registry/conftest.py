"""Fixtures of the registry's tests."""

from tests.registry_fixtures import aliases, clock, database, database_url, jobs, registry

__all__ = ["aliases", "clock", "database", "database_url", "jobs", "registry"]
