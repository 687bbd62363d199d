"""What is in the bucket: written down before the files are, and marked before they are removed."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "kept_objects",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("is_removed", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_kept_objects"),
        comment="what was written to the bucket, before it was; is_removed: a server is removing it since touched_at",
    )
