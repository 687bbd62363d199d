"""Aliases that choose their target by content: what their routers were fitted with, and their numbers."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, and a column for each alias and each of its changes."""
    op.add_column("aliases", sa.Column("router", sa.JSON))
    op.add_column("alias_changes", sa.Column("router", sa.JSON))
    op.create_table(
        "routers",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("examples", sa.JSON, nullable=False),
        sa.Column("weights", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_routers"),
    )
