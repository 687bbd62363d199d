"""Rows that know when they changed, a count of what is served, and names read from their ends."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_CHUNK = 10_000
_COUNT = (
    "UPDATE registry_state SET served_versions = (SELECT count(*) FROM versions WHERE deleted_at IS NULL AND proved)"
)
_DEFAULT = sa.text("default_version IS NOT NULL")
_LIVE = sa.text("deleted_at IS NULL")
_MERGED = sa.text("recipe_digest IS NOT NULL")
_ADAPTERS = (
    "a deleted name keeps its row, so that its numbers are not used again",
    "; revision: of the registry, when what the bare name means changed last",
)
_VERSIONS = (
    "immutable but for deleted_at",
    "; revision: of the registry, when the row or its profile changed last",
)


def upgrade() -> None:
    """Add the columns and what finds rows by them; rows that are there changed before any revision."""
    for table in ("adapters", "versions"):
        op.add_column(table, sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"))
        op.create_index(f"ix_{table}_revision", table, ["revision"])
    op.add_column("registry_state", sa.Column("served_versions", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("adapters", sa.Column("mirrored", _name(), nullable=False, server_default=""))
    bind = op.get_bind()
    is_postgres = bind.dialect.name == "postgresql"
    op.execute(_COUNT)
    if is_postgres:
        op.execute("UPDATE adapters SET mirrored = reverse(name)")
        for table, (before, added) in (("adapters", _ADAPTERS), ("versions", _VERSIONS)):
            op.create_table_comment(table, before + added, existing_comment=before)
    else:
        _mirror(bind)
    unproved = sa.text("proved IS false" if is_postgres else "proved IS 0")
    _index("ix_adapters_live", "adapters", ["name", "deleted_at"], _LIVE)
    _index("ix_adapters_mirrored", "adapters", ["mirrored"], _DEFAULT)
    _index("ix_versions_recipe_digest", "versions", ["recipe_digest"], _MERGED)
    _index("ix_versions_unproved", "versions", ["id"], unproved)


def _mirror(bind: sa.Connection) -> None:
    """SQLite turns no text round."""
    write = sa.text("UPDATE adapters SET mirrored = :mirrored WHERE name = :name")
    read = sa.text("SELECT name FROM adapters WHERE name > :after ORDER BY name LIMIT :most")
    after = ""
    while names := bind.execute(read, {"after": after, "most": _CHUNK}).scalars().all():
        bind.execute(write, [{"name": name, "mirrored": name[::-1]} for name in names])
        after = names[-1]


def _index(name: str, table: str, columns: list[str], where: sa.TextClause) -> None:
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def _name() -> "sa.types.TypeEngine[str]":
    return sa.String(128).with_variant(VARCHAR(128, collation="C"), "postgresql")
