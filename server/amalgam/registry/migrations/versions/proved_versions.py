"""Whether a version has answered: one that was registered and not proved is served by nobody."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; every version that is there has been served."""
    op.add_column("versions", sa.Column("proved", sa.Boolean, nullable=False, server_default=sa.true()))
