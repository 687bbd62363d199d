"""Whose files and batches a request may see."""

from starlette.requests import Request

from amalgam.api.access import caller_of
from amalgam.domain.stored_file import Owner, scopes_digest


def owner_of(request: Request) -> Owner:
    """Who asks, as files and batches know it."""
    caller = caller_of(request)
    scopes = caller.scopes
    return Owner(caller.tenant_id, caller.key_id, caller.client, scopes_digest(scopes), scopes.is_everything)
