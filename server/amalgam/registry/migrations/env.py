"""What alembic runs to migrate: the steps, on the connection and in the transaction that it was given."""

from alembic import context

from amalgam.registry.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
