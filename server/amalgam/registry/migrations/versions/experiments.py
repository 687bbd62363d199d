"""Answers that clients may judge, what they said of them, and experiments on aliases."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import VARCHAR

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_NAME = sa.String(128).with_variant(VARCHAR(128, collation="C"), "postgresql")
_VERSION = sa.String(160).with_variant(VARCHAR(160, collation="C"), "postgresql")
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables, and a column for what an alias carries."""
    op.add_column("aliases", sa.Column("experiment", sa.JSON))
    _create_feedback()
    op.create_table(
        "experiments",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("alias", _NAME, nullable=False),
        sa.Column("candidates", sa.JSON, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("ending", sa.JSON),
        sa.Column("counts", sa.JSON),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("ended_at", _MOMENT),
        sa.PrimaryKeyConstraint("id", name="pk_experiments"),
    )
    op.create_index("ix_experiments_alias_created_at", "experiments", ["alias", "created_at"])
    _create_counts()


def _answered() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("alias", _NAME, nullable=False),
        sa.Column("target", sa.String(1024), nullable=False),
        sa.Column("version", _VERSION, nullable=False),
        sa.Column("experiment", sa.String(64)),
        sa.Column("unit", sa.String(64)),
    )


def _create_feedback() -> None:
    op.create_table(
        "answers",
        sa.Column("tenant", _NAME, nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("completion_id", sa.String(128)),
        *_answered(),
        sa.Column("answered_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key_id", "id", name="pk_answers"),
        comment="answers that may still be judged, by the id of the request; unit: digest of what always meets one "
        "target",
    )
    op.create_index("ix_answers_completion_id", "answers", ["completion_id"])
    op.create_index("ix_answers_answered_at", "answers", ["answered_at"])
    op.create_table(
        "feedback",
        sa.Column("tenant", _NAME, nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("answer", sa.String(128), nullable=False),
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("value", sa.Float, nullable=False),
        *_answered(),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key_id", "answer", "name", name="pk_feedback"),
        comment="what was said about an answer, once under each name",
    )
    op.create_index("ix_feedback_created_at", "feedback", ["created_at"])
    op.create_index("ix_feedback_alias_name", "feedback", ["alias", "name"])
    op.create_index("ix_feedback_experiment_unit", "feedback", ["experiment", "unit"])


def _create_counts() -> None:
    op.create_table(
        "experiment_outcomes",
        sa.Column("experiment", sa.String(64), nullable=False),
        sa.Column("target", sa.String(1024), nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("total", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("experiment", "target", name="pk_experiment_outcomes"),
        sa.ForeignKeyConstraint(["experiment"], ["experiments.id"], name="fk_experiment_outcomes_experiment"),
        comment="feedback that counts, added in the transaction that takes it",
    )
    op.create_table(
        "experiment_requests",
        sa.Column("experiment", sa.String(64), nullable=False),
        sa.Column("target", sa.String(1024), nullable=False),
        sa.Column("front", sa.String(64), nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("requests", "errors", "slow")),
        sa.PrimaryKeyConstraint("experiment", "target", "front", name="pk_experiment_requests"),
        sa.ForeignKeyConstraint(["experiment"], ["experiments.id"], name="fk_experiment_requests_experiment"),
        comment="requests as one front end counted them",
    )
