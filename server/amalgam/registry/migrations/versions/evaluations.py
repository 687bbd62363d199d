"""Evaluations and their results."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "evaluations",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("label", sa.String(128), nullable=False),
        sa.Column("targets", sa.JSON, nullable=False),
        sa.Column("items", sa.JSON, nullable=False),
        sa.Column("items_digest", sa.String(64), nullable=False),
        sa.Column("tasks", sa.JSON, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("max_tokens", sa.Integer, nullable=False),
        sa.Column("search", sa.JSON),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("holder", sa.String(64)),
        _time("lease_expires_at", nullable=True),
        sa.Column("error", sa.JSON),
        _time("created_at", nullable=False),
        _time("updated_at", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
        comment="holder: the server that measures, under a lease; without it a running one is interrupted",
    )
    op.create_index("ix_evaluations_state_created_at", "evaluations", ["state", "created_at"])
    op.create_table(
        "evaluation_results",
        sa.Column("evaluation_id", sa.String(64), nullable=False),
        sa.Column("target", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("item", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("served", sa.String(256), nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("values", sa.JSON, nullable=False),
        sa.Column("error_code", sa.String(64)),
        sa.PrimaryKeyConstraint("evaluation_id", "target", "item", name="pk_evaluation_results"),
        sa.ForeignKeyConstraint(["evaluation_id"], ["evaluations.id"], name="fk_evaluation_results_evaluation_id"),
        comment="target and item: places in the lists of the evaluation",
    )


def _time(name: str, *, nullable: bool) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)
