"""Whose files and batches a request may see, and what its key may store."""

from starlette.requests import Request

from amalgam.api.access import caller_of
from amalgam.api.inference.spending import payer_of
from amalgam.api.state import services
from amalgam.domain.stored_file import Owner, scopes_digest
from amalgam.registry.stored_bytes import StorageLimit, storage_limits


def owner_of(request: Request) -> Owner:
    """Who asks, as files and batches know it."""
    caller = caller_of(request)
    scopes = caller.scopes
    return Owner(caller.tenant_id, caller.key_id, caller.client, scopes_digest(scopes), scopes.is_everything)


def limits_of(request: Request) -> tuple[StorageLimit, ...]:
    """The limits on stored bytes."""
    payer = payer_of(services(request), request)
    return () if payer is None else storage_limits(payer)
