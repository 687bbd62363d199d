"""The type that a version's factors are stored in."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; it stays empty for versions that are there."""
    op.add_column("versions", sa.Column("dtype", sa.String(16)))
