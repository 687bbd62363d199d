"""The record of changes of the admin plane: who did what to which object, and what it was before and after."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

AuditKind = Literal["adapter", "alias", "evaluation", "job", "key", "profile", "residency", "tenant"]
NAMING_KINDS: frozenset[AuditKind] = frozenset({"adapter", "alias", "profile", "residency"})
"""The objects of these kinds are names; those of the others are ids."""


class AuditDraft(BaseModel):
    """One change, as it is recorded."""

    model_config = ConfigDict(frozen=True)

    key_id: str
    tenant: str
    verb: str
    """It is written as in ``adapter.register``."""
    kind: AuditKind
    object: str
    before: str | None
    """It is the SHA-256 of the object's state, in hex; None where there was none."""
    after: str | None
    request_id: str


class AuditEntry(AuditDraft):
    """One recorded change."""

    id: int
    """It grows with every entry."""
    at: datetime


@dataclass(frozen=True, slots=True)
class AuditPage:
    """One page of entries."""

    items: tuple[AuditEntry, ...]
    next_cursor: str | None


def digest_of(state: Any) -> str | None:
    """SHA-256 of a state that JSON can hold, in hex; None of None."""
    if state is None:
        return None
    text = json.dumps(state, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
