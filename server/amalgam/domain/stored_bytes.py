"""Who stores something, and how many bytes of it there are."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredBy:
    """Whose bytes something counts as.

    Attributes:
        tenant: all that its keys store counts.
        key_id: of the key; empty without one.
    """

    tenant: str
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """What counts towards a limit on stored bytes.

    Attributes:
        adapters: of live versions; each counts whole, whoever else stores the same files.
        files: of those that were uploaded, and that batches wrote.
    """

    adapters: int = 0
    files: int = 0

    @property
    def total(self) -> int:
        """The bytes of both."""
        return self.adapters + self.files

    def __add__(self, other: "StoredBytes") -> "StoredBytes":
        return StoredBytes(self.adapters + other.adapters, self.files + other.files)
