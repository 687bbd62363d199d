"""Every route says which roles it lets in, and lets in no other: all routes, by all roles."""

import re
from collections.abc import AsyncIterator

import pytest
from fastapi.routing import APIRoute

from amalgam.api.access import access_of
from amalgam.domain.tenant import Role
from tests.support.keys import make_key
from tests.support.running_app import RunningApp, start_app

EVERYBODY = {"/livez", "/readyz", "/health", "/ping", "/", "/docs", "/console", "/console/{path:path}"}
CLIENT, PUBLISHER, READER, METRICS, ADMIN = (
    Role.CLIENT, Role.PUBLISHER, Role.READER, Role.METRICS, Role.ADMIN,
)  # fmt: skip
ASKING = frozenset({CLIENT, PUBLISHER, ADMIN})
READING = frozenset({READER, PUBLISHER, ADMIN})
PUBLISHING = frozenset({PUBLISHER, ADMIN})
OPERATING = frozenset({ADMIN})
ADMINISTERED = {
    "POST /admin/v1/adapters/{name}:load", "POST /admin/v1/adapters/{name}:unload",
    "POST /admin/v1/adapters/{name}:pin", "POST /admin/v1/adapters/{name}:unpin",
    "POST /admin/v1/exports", "POST /v1/load_lora_adapter", "GET /openapi.json",
    "POST /admin/v1/tenants", "PATCH /admin/v1/tenants/{tenant_id}", "DELETE /admin/v1/tenants/{tenant_id}",
    "POST /admin/v1/keys", "PATCH /admin/v1/keys/{key_id}",
    "POST /admin/v1/keys/{key_id}:rotate", "POST /admin/v1/keys/{key_id}:revoke",
}  # fmt: skip
"""What the operator alone may do, whatever a key's scopes are."""


@pytest.fixture(scope="module")
async def keyed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningApp, dict[Role, str]]]:
    async with start_app(tmp_path_factory.mktemp("roles")) as running_app:
        yield running_app, {role: await make_key(running_app, role.value) for role in Role}


def routes(running_app: RunningApp) -> list[tuple[str, str, frozenset[Role] | None]]:
    """Method, template and the roles that its marker names; None: everybody."""
    found = []
    for route in running_app.app.routes:
        assert isinstance(route, APIRoute)
        access = access_of(route)
        assert access is not None
        found += [(method, route.path, access.roles) for method in sorted(route.methods)]
    return found


def expected(method: str, template: str) -> frozenset[Role] | None:
    """Whom a route should let in, by what it is: said here a second time, so that a marker that slips shows."""
    if template in EVERYBODY:
        return None
    if template == "/metrics":
        return frozenset({METRICS, ADMIN})
    if f"{method} {template}" in ADMINISTERED:
        return OPERATING
    if f"{method} {template}" == "GET /admin/v1/aliases/{name}/examples":
        # What customers said may be among them.
        return PUBLISHING
    if template.startswith("/admin/") or template == "/v1/unload_lora_adapter":
        return READING if method == "GET" else PUBLISHING
    if template == "/v1/me":
        return frozenset(Role) - {METRICS}
    return READING if template.startswith("/v1/organization/") else ASKING


def test_every_marker_names_the_roles_that_its_route_is_for(keyed: tuple[RunningApp, dict[Role, str]]) -> None:
    for method, template, roles in routes(keyed[0]):
        assert roles == expected(method, template), (method, template)


async def test_every_role_enters_where_it_may_and_nowhere_else(keyed: tuple[RunningApp, dict[Role, str]]) -> None:
    running_app, keys = keyed
    tried = 0
    for role, key in keys.items():
        async with running_app.http(key) as session:
            for method, template, roles in routes(running_app):
                answer = await session.request(method, re.sub(r"\{[^}]+\}", "1", template))
                tried += 1
                is_refused = answer.status_code in (401, 403) and "plane is needed" in answer.text
                expects = roles is not None and role not in roles
                assert is_refused is expects, (method, template, role, answer.status_code, answer.text[:300])
    assert tried > 300


async def test_a_key_of_the_registry_reads_no_metrics_by_being_near(keyed: tuple[RunningApp, dict[Role, str]]) -> None:
    """Counters name every adapter; a program on this machine reads them without a key, and not with another's."""
    running_app, keys = keyed
    for role, status in ((CLIENT, 403), (PUBLISHER, 403), (READER, 403), (METRICS, 200), (ADMIN, 200)):
        async with running_app.http(keys[role]) as session:
            assert (await session.get("/metrics")).status_code == status, role
