"""Aliases and their history."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "aliases",
        sa.Column("name", _name(), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("targets", sa.JSON, nullable=False),
        sa.Column("uses", sa.JSON, nullable=False),
        _time("created_at", nullable=False),
        _time("updated_at", nullable=False),
        _time("deleted_at", nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_aliases"),
        comment="uses: [adapter, version or null for its default] of every adapter that the targets need; "
        "a deleted name keeps its row, so that its revisions are not used again",
    )
    op.create_table(
        "alias_changes",
        sa.Column("name", _name(), nullable=False),
        sa.Column("revision", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("targets", sa.JSON, nullable=False),
        sa.Column("restores", sa.Integer),
        _time("created_at", nullable=False),
        sa.PrimaryKeyConstraint("name", "revision", name="pk_alias_changes"),
        sa.ForeignKeyConstraint(["name"], ["aliases.name"], name="fk_alias_changes_name"),
    )


def _name() -> sa.String:
    return sa.String(128).with_variant(VARCHAR(128, collation="C"), "postgresql")


def _time(name: str, *, nullable: bool) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)
