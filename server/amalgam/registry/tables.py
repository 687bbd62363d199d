"""The tables, in types that SQLite and PostgreSQL share. A change comes with a migration; a test compares the two."""

from typing import Any, Final

import sqlalchemy as sa

from amalgam.domain.job import LIVE_STATES
from amalgam.domain.usage import COUNTS
from amalgam.registry.column_types import BUCKET, DIGEST, JSON, METADATA, NAME, VERSION, UtcDateTime
from amalgam.registry.experiment_tables import answers, experiment_outcomes, experiment_requests, experiments, feedback

# fmt: off
__all__ = [
    "METADATA", "UtcDateTime", "adapters", "alias_changes", "aliases", "answers", "audit", "batches", "blends",
    "evaluation_results", "evaluations", "experiment_outcomes", "experiment_requests", "experiments", "feedback",
    "files", "idempotency_keys", "jobs", "kept_objects", "keys", "limit_clock", "limit_takes", "pins",
    "registry_state", "routers", "tenants", "usage_minutes", "version_profiles", "versions",
]
# fmt: on


def _stored_by() -> tuple[sa.Column[Any], sa.Column[Any]]:
    """Whose it is, and whose bytes it counts as; the server's own is the built-in tenant's."""
    tenant = sa.Column("tenant", NAME, nullable=False, server_default="default")
    return tenant, sa.Column("key_id", sa.String(64), nullable=False, server_default="")


registry_state: Final = sa.Table(
    "registry_state",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    # Grows with every change to tenants or keys.
    sa.Column("access_revision", sa.BigInteger, nullable=False, server_default="0"),
    # Live versions that have answered; kept by every change, so that nobody has to count a million rows.
    sa.Column("served_versions", sa.BigInteger, nullable=False, server_default="0"),
    comment="one row; its revision grows with every change to adapters or versions",
)

adapters: Final = sa.Table(
    "adapters",
    METADATA,
    sa.Column("name", NAME, primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("default_version", sa.Integer),
    sa.Column("next_version", sa.Integer, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("deleted_at", UtcDateTime),
    # The name read from its end: names that differ at their beginning stand together.
    sa.Column("mirrored", NAME, nullable=False, server_default=""),
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0", index=True),
    comment="a deleted name keeps its row, so that its numbers are not used again; "
    "revision: of the registry, when what the bare name means changed last",
)
_live: Final = adapters.c.deleted_at.is_(None)
# Of both columns, so that SQLite need not look at the rows themselves.
sa.Index("ix_adapters_live", adapters.c.name, adapters.c.deleted_at, sqlite_where=_live, postgresql_where=_live)
_meaning: Final = adapters.c.default_version.is_not(None)
sa.Index("ix_adapters_mirrored", adapters.c.mirrored, sqlite_where=_meaning, postgresql_where=_meaning)

versions: Final = sa.Table(
    "versions",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", NAME, sa.ForeignKey("adapters.name"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("digest", DIGEST, nullable=False, index=True),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("module_count", sa.Integer, nullable=False),
    sa.Column("base_fingerprint", DIGEST, nullable=False),
    sa.Column("source", sa.String(32), nullable=False),
    sa.Column("recipe_digest", DIGEST),
    # What a merge keeps of its inputs is written into these two when it is published, before anybody is served it.
    sa.Column("lineage", JSON),
    sa.Column("warnings", JSON, nullable=False),
    # Whether it has answered; the other one that changes, once, from false to true.
    sa.Column("proved", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("deleted_at", UtcDateTime),
    sa.Column("dtype", sa.String(16)),
    *_stored_by(),
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0", index=True),
    sa.UniqueConstraint("name", "number"),
    sa.Index(None, "tenant"),
    sa.Index(None, "name", "recipe_digest"),
    # Without it SQLite would give the id of a removed last row to the next one.
    sqlite_autoincrement=True,
    comment="immutable but for deleted_at; revision: of the registry, when the row or its profile changed last",
)
_merged: Final = versions.c.recipe_digest.is_not(None)
sa.Index("ix_versions_recipe_digest", versions.c.recipe_digest, sqlite_where=_merged, postgresql_where=_merged)
_unproved: Final = versions.c.proved.is_(False)
sa.Index("ix_versions_unproved", versions.c.id, sqlite_where=_unproved, postgresql_where=_unproved)

version_profiles: Final = sa.Table(
    "version_profiles",
    METADATA,
    sa.Column("version_id", sa.Integer, sa.ForeignKey("versions.id"), primary_key=True, autoincrement=False),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("origin", sa.String(16), nullable=False),
    sa.Column("profile", JSON),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    comment="the highest revision of a version holds, those below are its history; profile null: deleted",
)

pins: Final = sa.Table(
    "pins",
    METADATA,
    sa.Column("version_id", sa.Integer, sa.ForeignKey("versions.id"), primary_key=True, autoincrement=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    comment="versions that every server keeps in memory",
)

blends: Final = sa.Table(
    "blends",
    METADATA,
    sa.Column("digest", NAME, primary_key=True),
    sa.Column("recipe", JSON, nullable=False),
    sa.Column("used_at", UtcDateTime, nullable=False, index=True),
    comment="recipes of blends, so that every server knows what the name of one means; those that nobody uses go",
)

jobs: Final = sa.Table(
    "jobs",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("name", NAME, nullable=False),
    sa.Column("recipe", JSON, nullable=False),
    sa.Column("recipe_digest", DIGEST, nullable=False),
    sa.Column("input_digests", JSON, nullable=False),
    sa.Column("set_default", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("worker", sa.String(128)),
    sa.Column("fencing_token", sa.Integer, nullable=False),
    sa.Column("lease_expires_at", UtcDateTime),
    sa.Column("progress", JSON),
    sa.Column("error_code", sa.String(64)),
    sa.Column("error_status", sa.Integer),
    sa.Column("error_message", sa.Text),
    sa.Column("version_id", sa.Integer, sa.ForeignKey("versions.id")),
    sa.Column("timings", JSON, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("probe", JSON),
    sa.Column("fit", JSON),
    sa.Column("reading", JSON),
    sa.Column("waits_for", sa.String(64), index=True),
    *_stored_by(),
    sa.Index(None, "state", "created_at"),
)

_is_live: Final[sa.ColumnElement[Any]] = jobs.c.state.in_(LIVE_STATES)
# The same recipe is never built twice at once under one name, even if two submissions slip past each other.
sa.Index(
    "uq_jobs_live", jobs.c.name, jobs.c.recipe_digest, unique=True, sqlite_where=_is_live, postgresql_where=_is_live
)

aliases: Final = sa.Table(
    "aliases",
    METADATA,
    sa.Column("name", NAME, primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    *(sa.Column(name, JSON, nullable=False) for name in ("targets", "uses")),
    sa.Column("router", JSON),
    sa.Column("experiment", JSON),
    *(sa.Column(name, UtcDateTime, nullable=False) for name in ("created_at", "updated_at")),
    sa.Column("deleted_at", UtcDateTime),
    comment="uses: [adapter, version or null for its default] of every adapter that the targets need; "
    "a deleted name keeps its row, so that its revisions are not used again",
)

alias_changes: Final = sa.Table(
    "alias_changes",
    METADATA,
    sa.Column("name", NAME, sa.ForeignKey("aliases.name"), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("targets", JSON, nullable=False),
    sa.Column("router", JSON),
    sa.Column("restores", sa.Integer),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

routers: Final = sa.Table(
    "routers",
    METADATA,
    sa.Column("digest", DIGEST, primary_key=True),
    sa.Column("examples", JSON, nullable=False),
    sa.Column("weights", sa.LargeBinary, nullable=False),
)

idempotency_keys: Final = sa.Table(
    "idempotency_keys",
    METADATA,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("holder", sa.String(64), nullable=False),
    sa.Column("lease_expires_at", UtcDateTime),
    # What the request has made so far: known from the very transaction that made it, so that no retry makes it twice.
    sa.Column("version_id", sa.Integer, sa.ForeignKey("versions.id")),
    sa.Column("fingerprint", sa.String(64)),
    sa.Column("status", sa.Integer),
    sa.Column("headers", sa.Text),
    sa.Column("body", sa.LargeBinary),
    sa.Column("created_at", UtcDateTime, nullable=False, index=True),
    comment="by SHA-256 of caller and key; no caller's key is kept",
)

evaluations: Final = sa.Table(
    "evaluations",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("label", sa.String(128), nullable=False),
    *(sa.Column(name, JSON, nullable=False) for name in ("targets", "items", "tasks", "metrics")),
    sa.Column("items_digest", DIGEST, nullable=False),
    sa.Column("max_tokens", sa.Integer, nullable=False),
    sa.Column("search", JSON),
    *_stored_by(),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("holder", sa.String(64)),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("lease_expires_at", UtcDateTime),
    sa.Column("error", JSON),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Index(None, "state", "created_at"),
    comment="holder: the server that measures, under a lease; attempts: how often one has begun and did not say how it "
    "ended",
)

evaluation_results: Final = sa.Table(
    "evaluation_results",
    METADATA,
    sa.Column("evaluation_id", sa.String(64), sa.ForeignKey("evaluations.id"), primary_key=True),
    sa.Column("target", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("item", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("served", sa.String(256), nullable=False),
    sa.Column("answer", sa.Text),
    sa.Column("values", JSON, nullable=False),
    sa.Column("error_code", sa.String(64)),
    comment="target and item: places in the lists of the evaluation",
)

tenants: Final = sa.Table(
    "tenants",
    METADATA,
    sa.Column("id", NAME, primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("weight", sa.Float, nullable=False),
    sa.Column("limits", JSON, nullable=False),
    sa.Column("model_limits", JSON, nullable=False),
    sa.Column("cache_group", NAME),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    comment="a deleted tenant keeps its row, so that its id is not used again",
)

keys: Final = sa.Table(
    "keys",
    METADATA,
    sa.Column("id", NAME, primary_key=True),
    sa.Column("tenant", NAME, sa.ForeignKey("tenants.id"), nullable=False, index=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("secret_digest", DIGEST, nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("scopes", JSON, nullable=False),
    sa.Column("limits", JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("last_used_at", UtcDateTime),
    sa.Column("successor", NAME, sa.ForeignKey("keys.id")),
    sa.Column("created_at", UtcDateTime, nullable=False),
    comment="secret_digest: SHA-256 of 256 random bits; no key can be had from it",
)

audit: Final = sa.Table(
    "audit",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False, index=True),
    sa.Column("key_id", sa.String(64), nullable=False),
    sa.Column("tenant", NAME, nullable=False, index=True),
    sa.Column("verb", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("object", sa.String(256), nullable=False),
    sa.Column("before", DIGEST),
    sa.Column("after", DIGEST),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Index(None, "kind", "object"),
    sqlite_autoincrement=True,
    comment="rows are added and never changed; before, after: SHA-256 of the object, null where there was none",
)

limit_clock: Final = sa.Table(
    "limit_clock",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("now_ms", sa.BigInteger, nullable=False),
    comment="one row; only goes on, by the monotonic time of the front ends, whatever any clock says",
)

limit_takes: Final = sa.Table(
    "limit_takes",
    METADATA,
    sa.Column("bucket", BUCKET, primary_key=True),
    sa.Column("front", sa.String(64), primary_key=True),
    sa.Column("slot", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("taken", sa.BigInteger, nullable=False),
    sa.Column("until_s", sa.BigInteger, nullable=False, index=True),
    comment="what a front end has used and holds of a limit, by the second that it was given out in; "
    "until_s: when the row stops counting, by limit_clock",
)

usage_minutes: Final = sa.Table(
    "usage_minutes",
    METADATA,
    sa.Column("minute", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("front", sa.String(64), primary_key=True),
    sa.Column("tenant", NAME, primary_key=True),
    sa.Column("key_id", sa.String(64), primary_key=True),
    sa.Column("alias", NAME, primary_key=True),
    sa.Column("version", VERSION, primary_key=True),
    sa.Column("endpoint", sa.String(32), primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in COUNTS),
    comment="what was used in a minute, by who asked and what answered, as one front end counted it; "
    "minute: Unix seconds of its begin, by the database's clock",
)

files: Final = sa.Table(
    "files",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("tenant", NAME, nullable=False),
    sa.Column("key_id", sa.String(64), nullable=False),
    sa.Column("scopes", DIGEST, nullable=False),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("filename", sa.String(512), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False, index=True),
    sa.Index(None, "tenant", "created_at"),
    comment="the bytes are in the store; scopes: digest of those of the key",
)

batches: Final = sa.Table(
    "batches",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("tenant", NAME, nullable=False),
    sa.Column("key_id", sa.String(64), nullable=False),
    sa.Column("client", sa.String(64), nullable=False),
    sa.Column("scopes", DIGEST, nullable=False),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("input_file", sa.String(64), nullable=False),
    sa.Column("metadata", JSON),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("completed", sa.Integer, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    sa.Column("errors", JSON),
    sa.Column("output_file", sa.String(64)),
    sa.Column("error_file", sa.String(64)),
    sa.Column("output_kept_s", sa.Integer, nullable=False),
    sa.Column("holder", sa.String(64)),
    sa.Column("runs", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("lease_expires_at", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    *(
        sa.Column(f"{step}_at", UtcDateTime)
        for step in ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    ),
    sa.Index(None, "tenant", "created_at"),
    sa.Index(None, "status", "created_at"),
    comment="holder: the server that answers, under a lease; runs: how often one has begun; attempts: those that "
    "did not say how it ended",
)

kept_objects: Final = sa.Table(
    "kept_objects",
    METADATA,
    sa.Column("digest", DIGEST, primary_key=True),
    sa.Column("touched_at", UtcDateTime, nullable=False),
    sa.Column("is_removed", sa.Boolean, nullable=False),
    comment="what was written to the bucket, before it was; is_removed: a server is removing it since touched_at",
)
