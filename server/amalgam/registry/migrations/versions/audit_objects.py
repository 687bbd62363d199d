"""Changes of one object are found in the audit without reading all of it."""

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the index."""
    op.create_index("ix_audit_kind_object", "audit", ["kind", "object"])
