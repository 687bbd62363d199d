"""What the objects of the admin plane are at a moment, as the audit takes their digests."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from amalgam.api.state import Services
from amalgam.domain.adapter import MAX_VERSION
from amalgam.domain.audit import AuditKind
from amalgam.errors import NotFound

_Look = Callable[[Services, str], Awaitable[Any]]


def _or_none(look: _Look) -> _Look:
    """None where there is no such object."""

    async def state(services: Services, name: str) -> Any:
        try:
            return await look(services, name)
        except NotFound:
            return None

    return state


async def _adapter(services: Services, name: str) -> Any:
    return (await services.adapters.get(name)).model_dump(mode="json")


async def _alias(services: Services, name: str) -> Any:
    return (await services.aliases.get(name)).model_dump(mode="json")


async def _evaluation(services: Services, evaluation_id: str) -> Any:
    found = await services.evaluations.get(evaluation_id)
    # How far it is changes by itself.
    return found.model_dump(mode="json", exclude={"done", "updated_at"})


async def _job(services: Services, job_id: str) -> Any:
    found = await services.merges.get(job_id)
    return found.model_dump(mode="json", include={"id", "kind", "name", "recipe_digest", "state", "set_default"})


async def _key(services: Services, key_id: str) -> Any:
    return (await services.tenants.key(key_id)).model_dump(mode="json", exclude={"last_used_at", "secret_digest"})


async def _profile(services: Services, ref: str) -> Any:
    name, _, number = ref.partition("@")
    if not number.isdecimal() or int(number[:10]) > MAX_VERSION:
        return None
    states = await services.profiles.history(name, int(number))
    return states[0].model_dump(mode="json")


async def _residency(services: Services, name: str) -> Any:
    residents = services.engine.info().residents
    return sorted([one.engine_name, one.pinned] for one in residents if one.engine_name.startswith(f"{name}@"))


async def _tenant(services: Services, tenant_id: str) -> Any:
    return (await services.tenants.tenant(tenant_id)).model_dump(mode="json")


STATES: Final[Mapping[AuditKind, _Look]] = {
    "adapter": _or_none(_adapter),
    "alias": _or_none(_alias),
    "evaluation": _or_none(_evaluation),
    "job": _or_none(_job),
    "key": _or_none(_key),
    "profile": _or_none(_profile),
    "residency": _residency,
    "tenant": _or_none(_tenant),
}
"""Each kind of object has a look at its state."""
