"""Steps from one shape of the tables to the next, applied by `amalgam.registry.schema` when a database is opened."""
