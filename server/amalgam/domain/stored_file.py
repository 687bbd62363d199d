"""Files that keys upload and batches write, and whose they are."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from amalgam.domain.scopes import Scopes
from amalgam.domain.stored_bytes import StoredBy
from amalgam.domain.tenant import BUILT_IN_TENANT

FilePurpose = Literal["batch", "batch_output"]
KEPT_S: Final = 30 * 86_400
"""A file that says nothing of its expiry is kept for so long."""
MAX_FILES: Final = 10_000
"""One tenant has at most so many."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who asks, and so what of the tenant's files and batches may be seen.

    A key sees what keys of the same scopes made, so that its successor sees it too; one whose scopes name everything
    sees all of its tenant. What other tenants have is not there.

    Attributes:
        tenant: whose key it is.
        key_id: of the key; empty without one.
        client: the word for the key.
        scopes: digest of what the key may ask for.
        sees_all: whether that is everything.
    """

    tenant: str = BUILT_IN_TENANT
    key_id: str = ""
    client: str = ""
    scopes: str = ""
    sees_all: bool = True

    @property
    def stored_by(self) -> StoredBy:
        """Whose bytes their files count as."""
        return StoredBy(self.tenant, self.key_id)


class StoredFile(BaseModel):
    """A row; the bytes are in the store under its id.

    Attributes:
        scopes: digest of the scopes of the key that made it.
        bytes: how many it has.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    tenant: str
    key_id: str
    scopes: str
    purpose: FilePurpose
    filename: str
    bytes: int
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class FileDraft:
    """A file whose bytes are stored, and whose row is to be written."""

    id: str
    purpose: FilePurpose
    filename: str
    bytes: int
    kept_s: int = KEPT_S


@dataclass(frozen=True, slots=True)
class FilePage:
    """One page of files."""

    items: tuple[StoredFile, ...]
    has_more: bool


def scopes_digest(scopes: Scopes) -> str:
    """The same of scopes that cover the same by the same patterns: SHA-256, in hex."""
    text = json.dumps([sorted(set(scopes.models)), scopes.blends])
    return hashlib.sha256(text.encode()).hexdigest()
