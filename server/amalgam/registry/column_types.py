"""Types of columns that SQLite and PostgreSQL share."""

from datetime import UTC, datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import VARCHAR


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An aware datetime. SQLite keeps no zone, so values go in as UTC and come out marked as such."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """To UTC."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a datetime without a zone means another moment on another machine")
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """In UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# Pages go by name, so the order must be the same whatever the database's locale.
NAME: Final = sa.String(128).with_variant(VARCHAR(128, collation="C"), "postgresql")
DIGEST: Final = sa.String(64)
VERSION: Final = sa.String(160).with_variant(VARCHAR(160, collation="C"), "postgresql")
BUCKET: Final = sa.String(320).with_variant(VARCHAR(320, collation="C"), "postgresql")
JSON: Final = sa.JSON(none_as_null=True)
