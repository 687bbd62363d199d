"""What is asked for with a new version of an adapter, and what a check of its files says."""

from collections.abc import Iterable
from dataclasses import dataclass

from amalgam.domain.stored_bytes import StoredBy
from amalgam.errors.findings import Finding


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What an upload asks for in addition to its files."""

    name: str
    description: str | None = None
    set_default: bool = True
    if_absent: bool = False
    """With it, the request is refused with NameTaken where the adapter exists."""
    request_key: str | None = None
    """The request has it where it has an idempotency key."""
    use_profile: bool = False
    """It tells whether requests get what the folder's files say of prompts and sampling; else it is only kept."""
    stored_by: StoredBy | None = None
    """The version counts as this one's bytes; None: the server's own."""


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a dry run."""

    findings: tuple[Finding, ...]
    rank: int
    module_count: int
    size_bytes: int

    @property
    def valid(self) -> bool:
        """Whether the adapter would be taken."""
        return not any(finding.severity == "error" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """One file of an upload."""

    name: str
    chunks: Iterable[bytes]
    """It gives the bytes in pieces; reading them may block, so it is done in a thread."""
