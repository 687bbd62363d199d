"""Whose bytes versions count as, and those that merges will make."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_NAME = sa.String(128).with_variant(VARCHAR(128, collation="C"), "postgresql")


def upgrade() -> None:
    """Add the columns; what is there already counts as the built-in tenant's."""
    for table in ("versions", "jobs"):
        op.add_column(table, sa.Column("tenant", _NAME, nullable=False, server_default="default"))
        op.add_column(table, sa.Column("key_id", sa.String(64), nullable=False, server_default=""))
    op.create_index("ix_versions_tenant", "versions", ["tenant"])
