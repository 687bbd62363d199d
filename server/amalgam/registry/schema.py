"""Brings a database to the tables of this release, whoever else tries the same at the same moment."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from amalgam.domain.failpoints import Failpoints
from amalgam.errors.registry import SchemaTooNew

STEPS: Final = Path(__file__).parent / "migrations"
"""It is the folder of migrations."""
_POSTGRES_LOCK: Final = 0x616D616C67616D
"""Any number is right that nobody else locks in this database: 'amalgam' in ASCII."""


def upgrade(connection: sa.Connection, failpoints: Failpoints) -> None:
    """Apply the missing steps within the open write transaction of ``connection``: all of them or, on a crash, none.

    Raises:
        SchemaTooNew: a later release wrote the database.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_POSTGRES_LOCK)))
    config = Config()
    # A percent sign in the path would be read as an interpolation.
    config.set_main_option("script_location", str(STEPS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None:
        script = ScriptDirectory.from_config(config)
        if found not in {step.revision for step in script.walk_revisions()}:
            raise SchemaTooNew(found)
        if found == script.get_current_head():
            return
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    failpoints.reach("registry.migrated")
