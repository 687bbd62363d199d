"""Errors of the registry's database and of the store's disk."""

from amalgam.errors import AmalgamError, Unavailable


class RegistryUnavailable(Unavailable):
    """The database cannot be reached, is locked, full or read-only; nothing was written."""

    code = "registry_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The registry cannot be used now ({reason}); nothing was changed. "
            "Try again; `amalgam doctor` checks the database."
        )


class SchemaTooNew(AmalgamError):
    """The database was written by a later release, whose tables this one does not know."""

    code = "schema_too_new"

    def __init__(self, found: str) -> None:
        super().__init__(
            f"The registry has schema revision {found!r}, which this release does not know. "
            "Run the later release again."
        )


class StoreUnavailable(Unavailable):
    """The store's disk is full or failing; nothing was published."""

    code = "store_unavailable"
    retry_after_s = 30.0

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The store cannot take files now ({reason}); nothing was published. "
            "Free space or check the disk, then retry."
        )


class UnsupportedDatabase(AmalgamError):
    """``AMALGAM_DATABASE_URL`` names a database that this installation cannot use."""

    code = "unsupported_database"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The database URL cannot be used: {reason}. Set AMALGAM_DATABASE_URL, or leave it empty.")
