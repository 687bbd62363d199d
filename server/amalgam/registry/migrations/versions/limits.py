"""What front ends have used and hold of limits, their clock, the ledger of usage, and who pays for evaluations."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_BUCKET = sa.String(320).with_variant(VARCHAR(320, collation="C"), "postgresql")


_NAME = sa.String(128).with_variant(VARCHAR(128, collation="C"), "postgresql")
_VERSION = sa.String(160).with_variant(VARCHAR(160, collation="C"), "postgresql")


def upgrade() -> None:
    """Create the tables, and start the clock."""
    _add_limits()
    _add_usage()
    op.add_column("evaluations", sa.Column("tenant", _NAME, nullable=False, server_default="default"))
    op.add_column("evaluations", sa.Column("key_id", sa.String(64), nullable=False, server_default=""))


def _add_limits() -> None:
    op.create_table(
        "limit_clock",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("now_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_limit_clock"),
        comment="one row; only goes on, by the monotonic time of the front ends, whatever any clock says",
    )
    # Seconds are numbers of rows too: none of them is 0, which stands for what is counted by no second.
    op.execute("INSERT INTO limit_clock (id, now_ms) VALUES (1, 1000000)")
    op.create_table(
        "limit_takes",
        sa.Column("bucket", _BUCKET, nullable=False),
        sa.Column("front", sa.String(64), nullable=False),
        sa.Column("slot", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("taken", sa.BigInteger, nullable=False),
        sa.Column("until_s", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("bucket", "front", "slot", name="pk_limit_takes"),
        comment="what a front end has used and holds of a limit, by the second that it was given out in; "
        "until_s: when the row stops counting, by limit_clock",
    )
    op.create_index("ix_limit_takes_until_s", "limit_takes", ["until_s"])


def _add_usage() -> None:
    op.create_table(
        "usage_minutes",
        sa.Column("minute", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("front", sa.String(64), nullable=False),
        sa.Column("tenant", _NAME, nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("alias", _NAME, nullable=False),
        sa.Column("version", _VERSION, nullable=False),
        sa.Column("endpoint", sa.String(32), nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("blend_builds", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint(
            "minute", "front", "tenant", "key_id", "alias", "version", "endpoint", name="pk_usage_minutes"
        ),
        comment="what was used in a minute, by who asked and what answered, as one front end counted it; "
        "minute: Unix seconds of its begin, by the database's clock",
    )
