"""Merges whose weights are searched first: what was searched, and for which sweep a job waits."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("jobs", sa.Column("fit", sa.JSON))
    op.add_column("jobs", sa.Column("waits_for", sa.String(64)))
    op.create_index("ix_jobs_waits_for", "jobs", ["waits_for"])
