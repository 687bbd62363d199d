"""The tables of feedback and experiments."""

from typing import Final

import sqlalchemy as sa

from amalgam.registry.column_types import JSON, METADATA, NAME, VERSION, UtcDateTime

_TARGET: Final = sa.String(1024)
_ID: Final = sa.String(128)

answers: Final = sa.Table(
    "answers",
    METADATA,
    sa.Column("tenant", NAME, primary_key=True),
    sa.Column("key_id", sa.String(64), primary_key=True),
    sa.Column("id", _ID, primary_key=True),
    sa.Column("completion_id", _ID, index=True),
    sa.Column("alias", NAME, nullable=False),
    sa.Column("target", _TARGET, nullable=False),
    sa.Column("version", VERSION, nullable=False),
    sa.Column("experiment", sa.String(64)),
    sa.Column("unit", sa.String(64)),
    sa.Column("answered_at", UtcDateTime, nullable=False, index=True),
    comment="answers that may still be judged, by the id of the request; unit: digest of what always meets one target",
)

feedback: Final = sa.Table(
    "feedback",
    METADATA,
    sa.Column("tenant", NAME, primary_key=True),
    sa.Column("key_id", sa.String(64), primary_key=True),
    sa.Column("answer", _ID, primary_key=True),
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("alias", NAME, nullable=False),
    sa.Column("target", _TARGET, nullable=False),
    sa.Column("version", VERSION, nullable=False),
    sa.Column("experiment", sa.String(64)),
    sa.Column("unit", sa.String(64)),
    sa.Column("created_at", UtcDateTime, nullable=False, index=True),
    sa.Index(None, "alias", "name"),
    sa.Index(None, "experiment", "unit"),
    comment="what was said about an answer, once under each name",
)

experiments: Final = sa.Table(
    "experiments",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("alias", NAME, nullable=False),
    sa.Column("candidates", JSON, nullable=False),
    sa.Column("spec", JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("ending", JSON),
    # As they were at its end; while it runs, the two tables below are added up.
    sa.Column("counts", JSON),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("ended_at", UtcDateTime),
    sa.Index(None, "alias", "created_at"),
)

experiment_outcomes: Final = sa.Table(
    "experiment_outcomes",
    METADATA,
    sa.Column("experiment", sa.String(64), sa.ForeignKey("experiments.id"), primary_key=True),
    sa.Column("target", _TARGET, primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("total", sa.Float, nullable=False),
    comment="feedback that counts, added in the transaction that takes it",
)

experiment_requests: Final = sa.Table(
    "experiment_requests",
    METADATA,
    sa.Column("experiment", sa.String(64), sa.ForeignKey("experiments.id"), primary_key=True),
    sa.Column("target", _TARGET, primary_key=True),
    sa.Column("front", sa.String(64), primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("requests", "errors", "slow")),
    comment="requests as one front end counted them",
)
