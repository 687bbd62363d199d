"""Errors of the registry's database and the store's disk."""

from amalgam.errors import AmalgamError, Unavailable


class RegistryUnavailable(Unavailable):
    """The database cannot be reached, is locked, full or read-only; nothing was written.

    Next step: repeat; ``amalgam doctor``.
    """

    code = "registry_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The registry cannot be used now ({reason}); nothing was changed. "
            "Try again; `amalgam doctor` checks the database."
        )

    @classmethod
    def in_doubt(cls, reason: str) -> "RegistryUnavailable":
        """The connection was lost in the moment of a commit, whose answer nobody knows."""
        return cls(reason).saying(
            f"The registry was lost ({reason}) in the moment that it recorded the change, and may have recorded it. "
            "Send the same request again; where it has an Idempotency-Key, it happens once."
        )


class RegistryFailed(AmalgamError):
    """The database refused a statement in a way that nobody foresaw; nothing was changed.

    Next step: look into the server's log, under the request's id.
    """

    code = "registry_failed"

    def __init__(self) -> None:
        super().__init__(
            "The registry's database refused a statement that should be right; nothing was changed. "
            "The server's log has its words, under the id of the request."
        )


class SchemaTooNew(AmalgamError):
    """The database was written by a later release, whose tables this one does not know.

    Next step: run that release.
    """

    code = "schema_too_new"

    def __init__(self, found: str) -> None:
        super().__init__(
            f"The registry has schema revision {found!r}, which this release does not know. "
            "Run the later release again."
        )


class StoreUnavailable(Unavailable):
    """The store's disk is full or failing; nothing was published.

    Next step: free space, then repeat.
    """

    code = "store_unavailable"
    retry_after_s = 30.0

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The store cannot take files now ({reason}); nothing was published. "
            "Free space or check the disk, then retry."
        )


class ObjectStoreUnavailable(Unavailable):
    """The object store of adapter files does not answer, or refuses; nothing was changed.

    Next step: repeat; what lies on this server already is served meanwhile.
    """

    code = "object_store_unavailable"
    retry_after_s = 5.0

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The object store of adapter files cannot be used now ({reason}). "
            "Try again; adapters whose files are on this server are served meanwhile."
        )


class ObjectStoreUnfit(AmalgamError):
    """``AMALGAM_STORE`` names an object store that cannot keep adapters safely.

    Next step: name another, or a folder.
    """

    code = "object_store_unfit"

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The object store that AMALGAM_STORE names cannot keep adapters: {reason}. "
            "Name one with conditional writes, or a folder."
        )


class UnsupportedDatabase(AmalgamError):
    """``AMALGAM_DATABASE_URL`` names a database that this installation cannot use.

    Next step: name SQLite or PostgreSQL, with its extra installed.
    """

    code = "unsupported_database"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The database URL cannot be used: {reason}. Set AMALGAM_DATABASE_URL, or leave it empty.")
