"""The first tables: adapters, their versions, jobs, and the revision."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_LIVE = sa.text("state IN ('queued', 'running', 'built')")


def upgrade() -> None:
    """Create everything; the transaction around it makes that all or nothing."""
    state = op.create_table(
        "registry_state",
        sa.Column("id", sa.Integer, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_registry_state"),
        comment="one row; its revision grows with every change to adapters or versions",
    )
    op.bulk_insert(state, [{"id": 1, "revision": 0}])
    _create_adapters()
    _create_versions()
    _create_jobs()


def _name() -> sa.String:
    return sa.String(128).with_variant(VARCHAR(128, collation="C"), "postgresql")


def _time(name: str, *, nullable: bool) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _create_adapters() -> None:
    op.create_table(
        "adapters",
        sa.Column("name", _name(), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("default_version", sa.Integer),
        sa.Column("next_version", sa.Integer, nullable=False),
        _time("created_at", nullable=False),
        _time("deleted_at", nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_adapters"),
        comment="a deleted name keeps its row, so that its numbers are not used again",
    )


def _create_versions() -> None:
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", _name(), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("module_count", sa.Integer, nullable=False),
        sa.Column("base_fingerprint", sa.String(64), nullable=False),
        sa.Column("source", sa.String(32), nullable=False),
        sa.Column("recipe_digest", sa.String(64)),
        sa.Column("lineage", sa.JSON),
        sa.Column("warnings", sa.JSON, nullable=False),
        _time("created_at", nullable=False),
        _time("deleted_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_versions"),
        sa.ForeignKeyConstraint(["name"], ["adapters.name"], name="fk_versions_name"),
        sa.UniqueConstraint("name", "number", name="uq_versions_name_number"),
        sqlite_autoincrement=True,
        comment="immutable but for deleted_at",
    )
    op.create_index("ix_versions_digest", "versions", ["digest"])
    op.create_index("ix_versions_name_recipe_digest", "versions", ["name", "recipe_digest"])


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("name", _name(), nullable=False),
        sa.Column("recipe", sa.JSON, nullable=False),
        sa.Column("recipe_digest", sa.String(64), nullable=False),
        sa.Column("input_digests", sa.JSON, nullable=False),
        sa.Column("set_default", sa.Boolean, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("worker", sa.String(128)),
        sa.Column("fencing_token", sa.Integer, nullable=False),
        _time("lease_expires_at", nullable=True),
        sa.Column("progress", sa.JSON),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_status", sa.Integer),
        sa.Column("error_message", sa.Text),
        sa.Column("version_id", sa.Integer),
        sa.Column("timings", sa.JSON, nullable=False),
        _time("created_at", nullable=False),
        _time("updated_at", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_jobs_version_id"),
    )
    op.create_index("ix_jobs_state_created_at", "jobs", ["state", "created_at"])
    op.create_index(
        "uq_jobs_live",
        "jobs",
        ["name", "recipe_digest"],
        unique=True,
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )
