"""Serving profiles of versions, with their history."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "version_profiles",
        sa.Column("version_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("revision", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("profile", sa.JSON),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("version_id", "revision", name="pk_version_profiles"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_version_profiles_version_id"),
        comment="the highest revision of a version holds, those below are its history; profile null: deleted",
    )
