"""Errors of tenants and their keys: who there is, what has ended, and what is out of scope."""

from amalgam.errors import AmalgamError, Conflict, InvalidRequest, NotFound, Unavailable


class TenantNotFound(NotFound):
    """No tenant of that id.

    Next step: ``GET /admin/v1/tenants`` lists what there is.
    """

    code = "tenant_not_found"
    param = "tenant"

    def __init__(self, tenant: str) -> None:
        super().__init__(f"No tenant has the id {tenant!r}. GET /admin/v1/tenants lists what there is.")


class TenantExists(Conflict):
    """A tenant of that id is there, or was: ids are not used again.

    Next step: change the one that is there, or take another id.
    """

    code = "tenant_exists"
    param = "id"

    def __init__(self, tenant: str, *, is_deleted: bool = False) -> None:
        there = "belonged to a tenant that was deleted" if is_deleted else "is taken"
        step = "Take another one" if is_deleted else f"PATCH /admin/v1/tenants/{tenant} changes it, or take another one"
        super().__init__(f"The tenant id {tenant!r} {there}. {step}.")


class TenantKept(Conflict):
    """The built-in tenant, to which the keys of the environment belong, was to be suspended or deleted.

    Next step: take the keys out of the environment.
    """

    code = "tenant_kept"
    param = "tenant"

    def __init__(self, tenant: str) -> None:
        super().__init__(
            f"The tenant {tenant!r} is built in: the keys of the environment are its keys. "
            "Take those out of the environment and start again, if they should open nothing."
        )


class TenantSuspended(AmalgamError):
    """The tenant of the key is suspended: none of its keys opens anything.

    Next step: ask the operator; ``PATCH /admin/v1/tenants/{id}`` with ``"state": "active"`` ends it.
    """

    status = 403
    code = "tenant_suspended"
    type = "invalid_request_error"

    def __init__(self) -> None:
        super().__init__("The tenant of this key is suspended. Ask who runs this server.")


class KeyNotFound(NotFound):
    """No key of that id.

    Next step: ``GET /admin/v1/keys`` lists what there is.
    """

    code = "key_not_found"
    param = "key"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"No key has the id {key_id!r}. GET /admin/v1/keys lists what there is.")


class KeyExpired(AmalgamError):
    """The key's time is over.

    Next step: ask the operator for another one; the key that it was rotated to is valid.
    """

    status = 401
    code = "key_expired"
    type = "invalid_request_error"

    def __init__(self) -> None:
        super().__init__("This key has expired. Send the key that it was rotated to, or ask for another one.")


class KeySuspended(AmalgamError):
    """The key is suspended: it opens nothing until it is active again.

    Next step: ask the operator; ``PATCH /admin/v1/keys/{id}`` with ``"state": "active"`` ends it.
    """

    status = 403
    code = "key_suspended"
    type = "invalid_request_error"

    def __init__(self) -> None:
        super().__init__("This key is suspended. Ask who runs this server.")


class KeyNotLive(Conflict):
    """A key was to be rotated or changed that has ended or is not active, or whose end its rotation has set.

    Next step: take its successor, make it active, or create a key.
    """

    code = "key_not_live"
    param = "key"

    def __init__(self, key_id: str, successor: str | None) -> None:
        why = "has ended, or is not active" if successor is None else f"was rotated to {successor!r} before"
        step = "Make it active, or create a key" if successor is None else "Take its successor, or create a key"
        super().__init__(f"The key {key_id!r} {why}. {step}.")


class ScopesUnfit(InvalidRequest):
    """Scopes that the role of a key cannot have: an administrator's key opens everything.

    Next step: leave the scopes out, or take another role.
    """

    code = "scopes_unfit"
    param = "models"

    def __init__(self, role: str) -> None:
        super().__init__(f"A key of the role {role!r} cannot be narrowed. Leave the scopes out, or take another role.")


class NotInScope(AmalgamError):
    """What is asked for may be known, and is not for this key: the base model, blends, or a name that it would make.

    Next step: ask for what ``GET /v1/models`` lists, or have the key's scopes widened.
    """

    status = 403
    code = "not_in_scope"
    type = "invalid_request_error"
    param = "model"

    def __init__(self, what: str, *, param: str | None = None) -> None:
        super().__init__(
            f"This key's scopes do not cover {what}. GET /v1/models lists what it may ask for.", param=param
        )


class AuditUnavailable(Unavailable):
    """A change was made, and the registry was gone before the audit could record it; it is not acknowledged.

    Next step: repeat; what was made is found again, and recorded.
    """

    code = "audit_unavailable"

    def __init__(self, verb: str) -> None:
        super().__init__(
            f"The change ({verb}) may have been made, and could not be recorded in the audit. Send the same request "
            "again once the registry answers."
        )
