"""Tenants, keys, and the record of every change of the admin plane."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_NAME = sa.String(128).with_variant(VARCHAR(128, collation="C"), "postgresql")
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables, and the tenant that the keys of the environment belong to."""
    op.add_column("registry_state", sa.Column("access_revision", sa.BigInteger, nullable=False, server_default="0"))
    _add_tenants()
    _add_keys()
    _add_audit()


def _add_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", _NAME, nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("model_limits", sa.JSON, nullable=False),
        sa.Column("cache_group", _NAME),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("updated_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
        comment="a deleted tenant keeps its row, so that its id is not used again",
    )
    op.execute(
        "INSERT INTO tenants (id, name, state, weight, limits, model_limits, created_at, updated_at) VALUES "
        "('default', 'Keys of the environment', 'active', 1.0, '{}', '[]', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)"
    )


def _add_keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", _NAME, nullable=False),
        sa.Column("tenant", _NAME, nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("secret_digest", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("expires_at", _MOMENT),
        sa.Column("last_used_at", _MOMENT),
        sa.Column("successor", _NAME),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name="fk_keys_tenant"),
        sa.ForeignKeyConstraint(["successor"], ["keys.id"], name="fk_keys_successor"),
        comment="secret_digest: SHA-256 of 256 random bits; no key can be had from it",
    )
    op.create_index("ix_keys_tenant", "keys", ["tenant"])


def _add_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("tenant", _NAME, nullable=False),
        sa.Column("verb", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("object", sa.String(256), nullable=False),
        sa.Column("before", sa.String(64)),
        sa.Column("after", sa.String(64)),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sqlite_autoincrement=True,
        comment="rows are added and never changed; before, after: SHA-256 of the object, null where there was none",
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_tenant", "audit", ["tenant"])
