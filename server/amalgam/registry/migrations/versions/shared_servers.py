"""What several servers share: publishing of built jobs, starts of evaluations, pins, names of blends."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_COMMENT = "holder: the server that measures, under a lease; without it a running one is interrupted"
_LIVE = sa.text("state IN ('queued', 'running', 'built', 'publishing')")


def upgrade() -> None:
    """A job that is being published is alive; evaluations count their servers; pins and blends have tables."""
    op.drop_index("uq_jobs_live", table_name="jobs")
    op.create_index(
        "uq_jobs_live",
        "jobs",
        ["name", "recipe_digest"],
        unique=True,
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )
    op.add_column("evaluations", sa.Column("attempts", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "pins",
        sa.Column("version_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("version_id", name="pk_pins"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_pins_version_id"),
        comment="versions that every server keeps in memory",
    )
    op.create_table(
        "blends",
        sa.Column("digest", _name(), nullable=False),
        sa.Column("recipe", sa.JSON, nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_blends"),
        comment="recipes of blends, so that every server knows what the name of one means; those that nobody uses go",
    )
    op.create_index("ix_blends_used_at", "blends", ["used_at"])
    if op.get_bind().dialect.name == "postgresql":
        op.create_table_comment(
            "evaluations",
            "holder: the server that measures, under a lease; attempts: how often one has begun and did not say how it "
            "ended",
            existing_comment=_COMMENT,
        )


def _name() -> "sa.types.TypeEngine[str]":
    return sa.String(128).with_variant(VARCHAR(128, collation="C"), "postgresql")
